"""The choices of one HTTP request: a stream of tokens each.

Owns: their life. However the request ends, closing frees what they hold and counts how each ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.types import Receive

from qwen3moe_engine.output_stream import OutputStream, RequestOutput
from qwen3moe_engine.request import Completion
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.server.disconnect import unless_disconnected
from qwen3moe_engine.server.protocol import PromptTokensDetails, Usage, of_choice
from qwen3moe_engine.server.service import Service


class Generation:
    """`num_choices` for each prompt, those of the first prompt first. Whoever opens one closes it."""

    def __init__(self, service: Service, prompts: Sequence[tuple[int, ...]], num_choices: int):
        self._service, self._prompts, self._num_choices = service, prompts, num_choices
        self._streams: list[OutputStream] = []
        self._unfinished: set[int] = set()
        self._num_tokens = self._num_slots = 0
        self._failed = False

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    async def open(self, params: Sequence[SamplingParams], priority: int) -> None:
        """params: of each prompt. Raises ApiError if there are too many at once, and what AsyncEngine.submit raises;
        then nothing is left to close."""
        count = len(self._prompts) * self._num_choices
        self._service.slots.take(count)
        self._num_slots = count
        try:
            self._streams = await self._submit(params, priority)
        except BaseException:
            self.close()
            raise
        self._unfinished = set(range(count))

    async def _submit(self, params: Sequence[SamplingParams], priority: int) -> list[OutputStream]:
        wanted = [
            self._service.engine.submit(prompt, of_choice(own, index), priority)
            for prompt, own in zip(self._prompts, params, strict=True)
            for index in range(self._num_choices)
        ]
        results = await asyncio.gather(*wanted, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result  # streams that nobody holds cancel themselves
        return [result for result in results if isinstance(result, OutputStream)]

    def close(self) -> None:
        """Cancels what has not finished."""
        for stream in self._streams:
            stream.cancel()
        for _ in self._unfinished:
            self._service.metrics.count("error" if self._failed else "abort")
        self._unfinished = set()
        self._service.slots.release(self._num_slots)
        self._num_slots = 0

    async def completions(self, receive: Receive) -> list[Completion]:
        """Of all choices, once they are finished; closes. Raises ClientLeftError if the client of `receive` leaves."""
        try:
            return await unless_disconnected(receive, self._completions())
        finally:
            self.close()

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Of all choices with their indices, as they come."""
        if len(self._streams) == 1:
            async with aclosing(self._outputs_of(0)) as outputs:
                async for output in outputs:
                    yield 0, output
            return
        merged: asyncio.Queue[tuple[int, RequestOutput] | None] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(index, merged)) for index in range(len(self._streams))]
        try:
            for _ in pumps:
                while (item := await merged.get()) is not None:
                    yield item
            await asyncio.gather(*pumps)  # raises what ended one of them
        finally:
            for pump in pumps:
                pump.cancel()

    def usage(self) -> Usage:
        """Of what has been read so far; each prompt counts once, as its first choice found it."""
        firsts = self._streams[:: self._num_choices]
        num_prompt = sum(map(len, self._prompts))
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=self._num_tokens,
            total_tokens=num_prompt + self._num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(stream.num_cached for stream in firsts)),
        )

    async def _pump(self, index: int, merged: asyncio.Queue[tuple[int, RequestOutput] | None]) -> None:
        try:
            async for output in self._outputs_of(index):
                merged.put_nowait((index, output))
        finally:
            merged.put_nowait(None)

    async def _completions(self) -> list[Completion]:
        await asyncio.gather(*map(self._finish, range(len(self._streams))))
        return [await stream.completion() for stream in self._streams]

    async def _finish(self, index: int) -> None:
        async for _ in self._outputs_of(index):
            pass

    async def _outputs_of(self, index: int) -> AsyncGenerator[RequestOutput, None]:
        stream, metrics, previous = self._streams[index], self._service.metrics, None
        try:
            async for output in stream:
                metrics.observe(stream, output, previous)
                previous = output.time
                self._num_tokens += len(output.token_ids)
                if output.finish_reason is not None:
                    self._unfinished.discard(index)
                    metrics.count(output.finish_reason)
                yield output
        except Exception:
            self._failed = True
            raise
