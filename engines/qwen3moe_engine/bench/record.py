"""What was seen of one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestRecord:
    """Times in seconds of time.perf_counter; all numbers are of tokens.

    due, start, end: when it should have been sent, was sent, and was over. chunk_times: arrivals of the parts of its
    output. num_output: the server's count, or the parts where it gives none. num_counted: tokens seen in the stream,
    where they can be counted. num_expected: what an output that no end of sequence ends has. error: its kind, or None.
    """

    due: float
    start: float
    end: float
    chunk_times: tuple[float, ...] = ()
    num_prompt: int = 0
    num_output: int = 0
    num_counted: int | None = None
    num_expected: int | None = None
    error: str | None = None
    message: str = ""

    @property
    def time_to_first_token(self) -> float:
        return self.chunk_times[0] - self.start

    @property
    def latency(self) -> float:
        return self.chunk_times[-1] - self.start

    @property
    def num_lost(self) -> int:
        """Between what the server counts, what came, and what was to come: the largest difference."""
        counts = [count for count in (self.num_output, self.num_counted, self.num_expected) if count is not None]
        return max(counts) - min(counts)
