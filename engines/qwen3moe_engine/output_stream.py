"""What a request produces while it runs, as it comes.

Owns: one request's way from the thread that steps the engine to the task that reads it. Must not know the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from qwen3moe_engine.logprobs import TokenLogprobs
from qwen3moe_engine.request import Completion, Request
from qwen3moe_engine.timing import Timing


@dataclass(frozen=True)
class RequestOutput:
    """What a step added to a request.

    text: may be empty, where a character is not whole or a stop string may take it back; None without a tokenizer.
    logprobs: of the new tokens, where they were asked for. finish_reason, timing: of the last output only. time:
    `perf_counter` seconds, the same for all outputs of a step.
    """

    token_ids: tuple[int, ...]
    text: str | None
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: str | None
    time: float
    timing: Timing | None = None


class Mailbox:
    """Between the two threads: `next_output` is the stepping thread's, the rest the event loop's.

    The queue needs no bound: it holds at most an output for each of the request's tokens.
    """

    def __init__(self, request: Request):
        self.request = request
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue: asyncio.Queue[RequestOutput | Exception | None] = asyncio.Queue()  # None: cancelled
        self._num_sent = 0

    @property
    def has_output(self) -> bool:
        return len(self.request.output_ids) > self._num_sent

    def next_output(self, now: float) -> RequestOutput:
        """What has come since the last call."""
        request, start = self.request, self._num_sent
        self._num_sent = len(request.output_ids)
        finished = request.finish_reason is not None
        return RequestOutput(
            token_ids=tuple(request.output_ids[start:]),
            text=request.detokenizer.take(finished) if request.detokenizer else None,
            logprobs=tuple(request.logprobs[start:]) if request.params.logprobs is not None else None,
            finish_reason=request.finish_reason,
            time=now,
            timing=request.timing() if finished else None,
        )

    def settle(self, error: Exception | None) -> None:
        """Whether the engine took the request."""
        if self.accepted.done():
            return
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)

    def fail(self, error: Exception) -> None:
        """Ends the request, whether it had been taken or not."""
        if self.accepted.done():
            self.queue.put_nowait(error)
        else:
            self.accepted.set_exception(error)


class OutputStream:
    """An async iterator of RequestOutput; the last one has a finish_reason. Raises what ended the request otherwise.

    `aclose`, cancellation of the reading task, or nobody holding the stream any more cancel the request.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[Mailbox], None]):
        self._mailbox, self._cancel = mailbox, cancel
        self._ended = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self._mailbox.request.prompt_ids

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that the prefix cache held; known from the first output on."""
        return self._mailbox.request.num_cached

    @property
    def arrived(self) -> float:
        """`perf_counter` seconds."""
        return self._mailbox.request.arrived

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._ended:
            raise StopAsyncIteration
        try:
            output = await self._mailbox.queue.get()
        except BaseException:
            self.cancel()
            raise
        if output is None or self._ended:  # closed by another task
            raise StopAsyncIteration
        if isinstance(output, Exception):
            self._ended = True
            raise output
        self._ended = output.finish_reason is not None
        return output

    async def completion(self) -> Completion:
        """The whole, once it is finished; for those who have not read any of it."""
        async for _ in self:
            pass
        return self._mailbox.request.completion()

    def cancel(self) -> None:
        """Frees what the request holds before the next step. Nothing happens if it has finished."""
        if not self._ended:
            self._ended = True
            self._cancel(self._mailbox)

    async def aclose(self) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()
