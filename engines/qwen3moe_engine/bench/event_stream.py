"""The server-sent events of one completion.

Owns: what of OpenAI's streaming form is read, and what a whole stream is. Must not know HTTP or the clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

PREFIX, DONE = b"data:", b"[DONE]"


class StreamError(Exception):
    """kind: `error in stream`, what the server said in the middle; `truncated`; `not JSON`."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass
class EventStream:
    """Takes lines as they arrive.

    chunk_times: of events that bring output, which is text or, in case a token ends in the middle of a character, an
    empty text that is not the last; neither the role that opens a chat nor a bare finish reason is output.
    num_counted: tokens named by log-probabilities. num_prompt, num_output: of the server's usage; None before.
    """

    chunk_times: list[float] = field(default_factory=list)
    num_counted: int = 0
    num_prompt: int | None = None
    num_output: int | None = None
    finish_reason: str | None = None
    is_done: bool = False

    def feed(self, line: bytes, now: float) -> None:
        """Raises StreamError for what is no event of a completion."""
        if not line.startswith(PREFIX):
            return
        data = line[len(PREFIX) :].strip()
        if data == DONE:
            self.is_done = True
            return
        try:
            event = json.loads(data)
            self._take(event, now)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise StreamError("not JSON", f"{error!r} in {data[:200]!r}") from None

    def check_whole(self) -> None:
        """Raises StreamError if the stream ended before the completion did."""
        if not self.is_done or self.finish_reason is None:
            seen = f"{len(self.chunk_times)} parts, finish reason {self.finish_reason}, [DONE] {self.is_done}"
            raise StreamError("truncated", f"the stream ended behind {seen}")

    def _take(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            raise StreamError("error in stream", message_of(json.dumps(event)))
        if usage := event.get("usage"):
            self.num_prompt, self.num_output = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        for choice in event.get("choices", ()):
            self._take_choice(choice, now)

    def _take_choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        num_tokens = _count_tokens(choice.get("logprobs") or {})
        is_last = choice.get("finish_reason") is not None
        is_text = bool(text) or (text is not None and not is_last and (delta is None or "role" not in delta))
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.num_counted += num_tokens
        if is_text or num_tokens:
            self.chunk_times.append(now)


def message_of(body: str) -> str:
    """What an error in OpenAI's form says, or as much as a line holds of any other."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return body[:200]


def _count_tokens(logprobs: dict[str, Any]) -> int:
    """Of a completion's (`tokens`) or a chat's (`content`)."""
    return len(logprobs.get("tokens") or logprobs.get("content") or ())
