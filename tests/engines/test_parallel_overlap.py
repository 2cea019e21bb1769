"""Overlapping steps of a group of ranks: each draws the tokens that its next step needs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest
from fake_executor import EOS, VOCAB_SIZE, expected_tokens
from hypothesis import HealthCheck, Phase, given, settings
from overlapping_rank import BLOCK_SIZE, MAX_MODEL_LEN, NUM_BLOCKS, FakeRank
from schedules import Driver, Schedule, schedules

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.parallel.executor import OverlappingParallelExecutor
from qwen3moe_engine.parallel.rank import Place
from qwen3moe_engine.parallel.verdict import RankFailedError
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler

MAX_PROMPT, MAX_NEW_TOKENS = 30, 18
LAYOUT = Layout(tp=2)


@pytest.fixture
def executor() -> Iterator[OverlappingParallelExecutor]:
    with OverlappingParallelExecutor([FakeRank(Place(rank, LAYOUT)) for rank in range(2)]) as opened:
        yield opened


def make_engine(executor: OverlappingParallelExecutor, schedule: Schedule) -> tuple[Engine, Scheduler]:
    num_blocks = min(NUM_BLOCKS, num_blocks_for(schedule.max_tokens, BLOCK_SIZE) + schedule.spare_blocks)
    blocks, max_step_tokens = BlockManager(num_blocks, BLOCK_SIZE), max(schedule.max_step_tokens, schedule.max_seqs)
    scheduler = Scheduler(blocks, MAX_MODEL_LEN, max_step_tokens, schedule.max_seqs, schedule.max_waiting)
    return Engine(executor, scheduler, VOCAB_SIZE, (EOS,)), scheduler


def test_tokens_are_those_of_each_request_alone(executor):
    fake = executor.runner.fake  # type: ignore[attr-defined]

    # without shrinking: a group that has failed runs no second schedule
    @settings(
        max_examples=60,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS))
    def run(schedule):
        engine, scheduler = make_engine(executor, schedule)
        call_midway = lambda call: setattr(fake, "on_execute", call)  # noqa: E731
        requests = Driver(engine, scheduler, schedule, VOCAB_SIZE, call_midway).run()
        for arrival, request in zip(schedule.arrivals, requests, strict=True):
            if request is not None:
                expected = expected_tokens(request.prompt_ids, arrival.params)
                is_whole = request.finish_reason != "abort"
                assert request.output_ids == (expected if is_whole else expected[: len(request.output_ids)])

    run()
    assert fake.num_carried > 500


def test_a_rank_lost_between_overlapping_steps_is_named(executor):
    scheduler = Scheduler(BlockManager(NUM_BLOCKS, BLOCK_SIZE), MAX_MODEL_LEN, 16, 4)
    engine = Engine(executor, scheduler, VOCAB_SIZE, (EOS,))
    engine.add_request([1, 2, 3], SamplingParams(20, ignore_eos=True))
    engine.step()
    (other,) = multiprocessing.active_children()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    with pytest.raises(RankFailedError, match="rank 1 of 2: killed by SIGKILL"):
        for _ in range(20):
            engine.step()
