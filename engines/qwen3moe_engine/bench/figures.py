"""Figures of a load, defined as vLLM's benchmark_serving defines them, so that they can be set side by side.

Owns: the definitions. Must not know how requests were sent.

- TTFT, time to first token: from sending the request to the first part of its output.
- ITL, inter-token latency: between successive parts, those of all requests together. A server may put several tokens
  into one part; that is one ITL, as it is one wait.
- TPOT, time per output token: of a request, (latency - TTFT) / (output tokens - 1); requests of one token have none.
- E2E latency: from sending the request to the last part of its output.
- Throughput: what successful requests brought, by the time from the first sending to the end of the last request.
- Lateness: how long after it was due a request was sent. It is the client's own doing: where it nears the latencies,
  the client is too slow for the load, and its figures are of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.bench.record import RequestRecord


@dataclass(frozen=True)
class Distribution:
    """Milliseconds; the percentiles interpolate linearly."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of_seconds(cls, values: Sequence[float]) -> Distribution | None:
        """None of no values."""
        if not values:
            return None
        milliseconds = np.asarray(values) * 1e3
        return cls(float(milliseconds.mean()), *np.percentile(milliseconds, (50, 90, 99)).tolist())


@dataclass(frozen=True)
class Latencies:
    """Seconds of the successful requests, as the module's docstring defines them."""

    ttft: list[float]
    tpot: list[float]
    itl: list[float]
    e2e: list[float]
    lateness: list[float]

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Latencies:
        good = [record for record in records if record.error is None and record.chunk_times]
        return cls(
            ttft=[record.time_to_first_token for record in good],
            tpot=[
                (record.latency - record.time_to_first_token) / (record.num_output - 1)
                for record in good
                if record.num_output > 1
            ],
            itl=[gap for record in good for gap in np.diff(record.chunk_times).tolist()],
            e2e=[record.latency for record in good],
            lateness=[record.start - record.due for record in records],
        )


@dataclass(frozen=True)
class Figures:
    """duration: s. Throughputs: a second. The latencies: None where no request has one.

    num_lost_tokens: where the server's count, the tokens that came and the number asked for differ; see RequestRecord.
    errors: how many by kind. messages: one of each kind.
    """

    num_requests: int
    num_successful: int
    duration: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_lost_tokens: int
    request_throughput: float
    output_throughput: float
    total_throughput: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    lateness: Distribution | None
    errors: dict[str, int]
    messages: dict[str, str]

    @property
    def is_clean(self) -> bool:
        """Neither an error nor a lost token."""
        return not self.errors and not self.num_lost_tokens


def measure(records: Sequence[RequestRecord]) -> Figures:
    """Of at least one record."""
    good = [record for record in records if record.error is None]
    failed = [record for record in records if record.error is not None]
    duration = max(record.end for record in records) - min(record.start for record in records)
    num_prompt = sum(record.num_prompt for record in good)
    num_output = sum(record.num_output for record in good)
    latencies = Latencies.of(records)
    return Figures(
        num_requests=len(records),
        num_successful=len(good),
        duration=duration,
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        num_lost_tokens=sum(record.num_lost for record in good),
        request_throughput=len(good) / duration,
        output_throughput=num_output / duration,
        total_throughput=(num_prompt + num_output) / duration,
        **{name: Distribution.of_seconds(values) for name, values in vars(latencies).items()},
        errors=dict(Counter(str(record.error) for record in failed)),
        messages={str(record.error): record.message for record in reversed(failed)},
    )
