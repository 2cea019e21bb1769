"""The asynchronous engine over a fake executor, whose next token follows from all that a sequence has in the cache."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from fake_executor import EOS, VOCAB_SIZE, FakeExecutor, OverlappingFakeExecutor, expected_tokens

from qwen3moe_engine import (
    AsyncEngine,
    Engine,
    EngineDeadError,
    EngineStoppedError,
    OutputStream,
    QueueFullError,
    SamplingParams,
)
from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_plugins.errors import InputError

BLOCK_SIZE, MAX_MODEL_LEN = 4, 48
LONG = SamplingParams(30, ignore_eos=True)
TIMEOUT = 20.0  # seconds, for what takes milliseconds


class Letters:
    """A vocabulary of single characters, so that stop strings lie across tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([48 + token_id])


class Gate:
    """Holds the executor in the middle of a step, until it is opened."""

    def __init__(self, executor: FakeExecutor):
        self._opened, self._reached = threading.Event(), threading.Event()
        executor.on_execute = self._pass

    def _pass(self) -> None:
        self._reached.set()
        assert self._opened.wait(TIMEOUT)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, TIMEOUT)

    def open(self) -> None:
        self._opened.set()


def make_engine(num_blocks: int = 40, max_seqs: int = 4, max_waiting: int = 64) -> tuple[AsyncEngine, FakeExecutor]:
    executor = OverlappingFakeExecutor(num_blocks, BLOCK_SIZE, MAX_MODEL_LEN)
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), MAX_MODEL_LEN, 16, max_seqs, max_waiting)
    return AsyncEngine(Engine(executor, scheduler, VOCAB_SIZE, (EOS,), Letters())), executor


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), TIMEOUT))


async def read(stream: OutputStream) -> tuple[list[int], str, str | None]:
    """Everything a stream gives: token ids, text, finish reason."""
    outputs = [output async for output in stream]
    assert all(output.finish_reason is None for output in outputs[:-1])
    tokens = [token for output in outputs for token in output.token_ids]
    return tokens, "".join(output.text or "" for output in outputs), outputs[-1].finish_reason


async def submit_and_read(engine: AsyncEngine, prompt: list[int]) -> list[int]:
    return (await read(await engine.submit(prompt, LONG)))[0]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def text_of(tokens: list[int]) -> str:
    return "".join(chr(48 + token) for token in tokens)


def test_streams_are_what_each_request_gets_alone():
    async def test() -> None:
        engine, _ = make_engine()
        prompts = [[index, 3, 1 + index % 5] for index in range(24)]
        params = [replace(LONG, max_new_tokens=5 + index, temperature=index % 2, seed=index) for index in range(24)]
        async with engine:
            streams = [await engine.submit(*each) for each in zip(prompts, params, strict=True)]
            results = await asyncio.gather(*map(read, streams))
        for (tokens, text, reason), prompt, own in zip(results, prompts, params, strict=True):
            assert tokens == expected_tokens(prompt, own) and text == text_of(tokens) and reason == "length"
        assert engine.stats().num_blocks_used == 0 and engine.num_open == 0

    run(test)


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_readers_and_leavers(seed):
    """Requests come, are read whole, in part, or not at all, in a pool too small for them: whoever stays gets what it
    gets alone, and nothing is left."""
    chance = random.Random(seed)

    async def live(engine: AsyncEngine, index: int) -> bool:
        """Whether it stayed to the end."""
        own = replace(LONG, max_new_tokens=chance.randint(1, 30), temperature=index % 2, seed=index)
        prompt = [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, 18))]
        leaves_at = chance.choice((None, None, 0, 1, 2, 9))
        await asyncio.sleep(chance.random() * 0.02)
        stream = await engine.submit(prompt, own, priority=chance.randint(-1, 1))
        tokens: list[int] = []
        while leaves_at is None or len(tokens) < leaves_at:
            try:
                tokens += (await stream.__anext__()).token_ids
            except StopAsyncIteration:
                break
        assert tokens == expected_tokens(prompt, own)[: len(tokens)]
        assert leaves_at is not None or len(tokens) == own.max_new_tokens
        return leaves_at is None

    async def test() -> None:
        engine, _ = make_engine(num_blocks=16, max_seqs=6, max_waiting=200)
        async with engine:
            stayed = await asyncio.gather(*(live(engine, index) for index in range(60)))
            await until(lambda: engine.num_open == 0)
            stats = engine.stats()
            assert (stats.num_blocks_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
            assert stats.num_preemptions > 0 and 10 < sum(stayed) < 60
            engine.engine._scheduler.check_invariants()

    run(test)


def test_the_last_output_tells_the_time():
    async def test() -> None:
        engine, _ = make_engine()
        async with engine:
            stream = await engine.submit([1, 2], replace(LONG, max_new_tokens=6, logprobs=2))
            outputs = [output async for output in stream]
            timing = outputs[-1].timing
            assert timing and 0 <= timing.queue < timing.first_token < timing.total
            assert timing.total == pytest.approx(timing.first_token + 5 * timing.per_token)
            assert all(output.timing is None for output in outputs[:-1])
            assert [output.time for output in outputs] == sorted(output.time for output in outputs)
            assert all(len(found.best) == 2 for output in outputs for found in output.logprobs or ())
            assert sum(len(output.logprobs or ()) for output in outputs) == 6

    run(test)


def test_a_stop_string_is_never_streamed():
    async def test() -> None:
        whole = text_of(expected_tokens([7, 7], LONG))
        stop = whole[10:13]
        engine, _ = make_engine()
        async with engine:
            _, text, reason = await read(await engine.submit([7, 7], replace(LONG, stop=(stop,))))
        assert (text, reason) == (whole[: whole.index(stop)], "stop")

    run(test)


@pytest.mark.parametrize("how", ["aclose", "task cancelled", "forgotten"])
def test_a_cancelled_request_frees_its_blocks(how):
    async def test() -> None:
        engine, executor = make_engine()
        async with engine:
            gate = Gate(executor)
            stream = await engine.submit(list(range(12)), LONG)
            await gate.reached()
            other = asyncio.create_task(submit_and_read(engine, [5, 5]))  # submit returns behind the step
            if how == "aclose":
                await stream.aclose()
                assert [output async for output in stream] == []
            elif how == "task cancelled":
                task = asyncio.create_task(read(stream))
                await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            del stream
            gate.open()
            assert await other == expected_tokens([5, 5], LONG)
            await until(lambda: engine.num_open == 0)
            assert engine.stats().num_blocks_used == 0
            assert sum(seqs for _, seqs in executor.step_sizes) < 2 * 30, "the cancelled one went on"

    run(test)


def test_a_stream_closed_by_another_task_ends():
    async def test() -> None:
        engine, executor = make_engine()
        async with engine:
            gate = Gate(executor)
            stream = await engine.submit([1], LONG)
            await gate.reached()
            reader = asyncio.create_task(stream.__anext__())
            await asyncio.sleep(0)
            await stream.aclose()
            gate.open()
            with pytest.raises(StopAsyncIteration):
                await reader

    run(test)


def test_cancelled_while_it_is_being_submitted():
    async def test() -> None:
        engine, executor = make_engine()
        async with engine:
            gate = Gate(executor)
            first = await engine.submit([1], LONG)
            await gate.reached()
            task = asyncio.create_task(engine.submit([2], LONG))
            await until(lambda: engine.num_open == 2)
            task.cancel()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: engine.num_open <= 1)
            assert (await read(first))[0] == expected_tokens([1], LONG)

    run(test)


def test_refusals_reach_the_caller():
    async def test() -> None:
        engine, executor = make_engine(max_seqs=1, max_waiting=1)
        async with engine:
            with pytest.raises(InputError, match="token ids"):
                await engine.submit([VOCAB_SIZE], LONG)
            with pytest.raises(InputError, match="at most 48 together"):
                await engine.submit([1] * 40, LONG)
            gate = Gate(executor)
            running = await engine.submit([1], LONG)
            await gate.reached()
            late = [asyncio.create_task(engine.submit([2], LONG)) for _ in range(3)]
            await until(lambda: engine.num_open == 4)
            gate.open()
            results = await asyncio.gather(*late, return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == ["OutputStream"] + 2 * ["QueueFullError"]
            assert any(isinstance(result, QueueFullError) for result in results)
            await read(running)

    run(test)


def test_a_failing_executor_fails_every_request_by_name():
    async def test() -> None:
        engine, executor = make_engine(max_seqs=2)

        def fail() -> None:
            raise RuntimeError("lost the device")

        gate = Gate(executor)
        tasks = [asyncio.create_task(submit_and_read(engine, [index])) for index in range(5)]
        await until(lambda: engine.num_open == 5)  # those in a step, those that wait, those not taken yet
        executor.on_execute = fail
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert {str(result) for result in results} == {
            "engine: got RuntimeError: lost the device, expected a step; start the engine again"
        }
        assert engine.is_dead and not engine.is_ready and engine.num_open == 0
        with pytest.raises(EngineDeadError):
            await engine.submit([1], LONG)
        assert await engine.drain(1.0) == 0

    run(test)


def test_drain_finishes_what_it_has():
    async def test() -> None:
        engine, _ = make_engine()
        streams = [await engine.submit([index], LONG) for index in range(9)]
        draining = asyncio.create_task(engine.drain(TIMEOUT))
        await asyncio.sleep(0)
        with pytest.raises(EngineStoppedError):
            await engine.submit([1], LONG)
        results = await asyncio.gather(*map(read, streams))
        assert [tokens for tokens, _, _ in results] == [expected_tokens([index], LONG) for index in range(9)]
        assert await draining == 0

    run(test)


def test_drain_fails_what_outlasts_its_grace():
    async def test() -> None:
        engine, executor = make_engine()
        gate = Gate(executor)
        stream = await engine.submit([1], LONG)
        await gate.reached()
        draining = asyncio.create_task(engine.drain(0.05))
        with pytest.raises(EngineStoppedError):
            await read(stream)
        gate.open()
        assert await draining == 1 and engine.num_open == 0
        assert engine.stats().num_blocks_used == 0

    run(test)


def test_the_event_loop_goes_on_while_a_step_runs():
    async def test() -> None:
        engine, executor = make_engine()
        async with engine:
            gate = Gate(executor)
            stream = await engine.submit([1], LONG)
            await gate.reached()
            for _ in range(100):
                await asyncio.sleep(0)
            gate.open()
            assert len((await read(stream))[0]) == 30

    run(test)
