"""The clock of decode steps: what it times, and the bound that times are held against."""

from __future__ import annotations

import pytest
from fake_executor import FakeExecutor, OverlappingFakeExecutor
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3moe_engine.bench.step_case import StepCase
from qwen3moe_engine.bench.steps import FIRST_TOKEN_REPEATS, WARM_UP_STEPS, StepClock, num_new_tokens
from qwen3moe_engine.bench.workload import LengthRange
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.scheduler import Scheduler

VOCAB_SIZE, BLOCK_SIZE, MAX_SEQS = 61, 4, 8


def make_clock(
    lengths: list[int], max_step_tokens: int, kind: type[FakeExecutor] = FakeExecutor
) -> tuple[StepClock, FakeExecutor, Engine]:
    length = max(lengths)
    executor = kind(sum(num_blocks_for(tokens, BLOCK_SIZE) for tokens in lengths), BLOCK_SIZE, length)
    blocks = BlockManager(executor.num_blocks, BLOCK_SIZE)
    engine = Engine(executor, Scheduler(blocks, length, max_step_tokens, MAX_SEQS), VOCAB_SIZE, ())
    return StepClock(engine, VOCAB_SIZE, max_step_tokens), executor, engine


@pytest.mark.parametrize("kind", [FakeExecutor, OverlappingFakeExecutor])
@settings(deadline=None, max_examples=60)
@given(st.integers(1, MAX_SEQS), st.integers(1, 40), st.integers(0, 40), st.integers(1, 4), st.integers(MAX_SEQS, 50))
def test_every_timed_step_gives_each_sequence_a_token(kind, batch_size, context, spread, num_steps, max_step_tokens):
    """However the prompts were chunked, in a pool that holds just them."""
    contexts = StepCase(batch_size, LengthRange(context, context + spread)).draw()
    num_new = num_new_tokens(contexts, num_steps, max_step_tokens)
    clock, executor, engine = make_clock([tokens + num_new for tokens in contexts], max_step_tokens, kind)
    assert len(clock.decode(contexts, num_steps).milliseconds) == num_steps
    timed = executor.step_sizes[: -1 if kind is OverlappingFakeExecutor else None]  # one more was in flight
    assert timed[-num_steps - WARM_UP_STEPS :] == [(batch_size, batch_size)] * (num_steps + WARM_UP_STEPS)
    assert not engine.has_work
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0), "the next case finds it idle"
    assert stats.num_preemptions == 0


def test_first_tokens_are_of_prompts_that_nobody_has_seen():
    clock, executor, engine = make_clock([33], max_step_tokens=16)
    times = clock.first_token(32)
    assert len(times.milliseconds) == FIRST_TOKEN_REPEATS
    assert min(times.milliseconds) <= times.median <= times.percentile(90) <= max(times.milliseconds)
    assert executor.step_sizes == [(16, 1), (16, 1)] * FIRST_TOKEN_REPEATS
    assert engine.stats().num_prefix_hits == 0


@given(st.integers(2, 300), st.integers(1, 9000), st.integers(0, 9000))
def test_contexts_of_a_range_have_its_sum(batch_size, low, spread):
    case = StepCase.parse(f"{batch_size}x{low}-{low + spread}", "--cases")
    contexts = case.draw()
    assert (len(contexts), min(contexts), max(contexts)) == (batch_size, low, low + spread)
    assert abs(sum(contexts) - batch_size * (low + spread / 2)) <= batch_size / 2
    assert contexts == case.draw()
    assert str(StepCase.parse("8x64", "--cases")) == "8x64" and StepCase.parse("3x64", "--cases").draw() == [64] * 3
