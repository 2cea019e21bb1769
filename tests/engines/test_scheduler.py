"""What runs in a step: first come, first served, within the budgets of tokens, sequences and blocks."""

from __future__ import annotations

import pytest

from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.request import Request, SamplingParams
from qwen3moe_engine.scheduler import Scheduler, blocks_needed
from qwen3moe_plugins.errors import InputError


def make_scheduler(num_blocks=100, max_model_len=64, max_step_tokens=16, max_seqs=4) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, block_size=4), max_model_len, max_step_tokens, max_seqs)


def request(request_id: int, num_prompt: int, max_new_tokens: int = 4) -> Request:
    return Request(request_id, tuple(range(num_prompt)), SamplingParams(max_new_tokens))


def run_step(scheduler: Scheduler) -> dict[int, int]:
    """Schedules and computes a step. Returns the tokens of each request in it."""
    plan = scheduler.schedule()
    assert plan.num_tokens <= scheduler.max_step_tokens
    for item in plan.scheduled:
        samples = item.samples
        item.request.num_computed += item.num_new
        if samples:
            item.request.append(7, eos_token_ids=())
        if item.request.finish_reason:
            scheduler.finish(item.request)
    return {item.request.request_id: item.num_new for item in plan.scheduled}


def test_decode_goes_before_prefill_and_long_prompts_in_chunks():
    scheduler = make_scheduler()
    for request_id, num_prompt in enumerate((3, 30, 5)):
        scheduler.add(request(request_id, num_prompt))
    assert run_step(scheduler) == {0: 3, 1: 13}
    assert run_step(scheduler) == {0: 1, 1: 15}
    assert run_step(scheduler) == {0: 1, 1: 2, 2: 5}
    assert run_step(scheduler) == {0: 1, 1: 1, 2: 1}  # the fourth and last token of request 0
    assert run_step(scheduler) == {1: 1, 2: 1}
    assert run_step(scheduler) == {1: 1, 2: 1}
    assert not scheduler.has_work and scheduler.blocks.num_free == 100


def test_max_seqs_bounds_what_runs():
    scheduler = make_scheduler(max_seqs=2)
    for request_id in range(3):
        scheduler.add(request(request_id, 2, max_new_tokens=2))
    assert [run_step(scheduler) for _ in range(4)] == [{0: 2, 1: 2}, {0: 1, 1: 1}, {2: 2}, {2: 1}]


def test_a_request_waits_for_blocks_and_nobody_overtakes_it():
    scheduler = make_scheduler(num_blocks=5)
    scheduler.add(request(0, 8))  # 12 tokens: 3 blocks
    scheduler.add(request(1, 8))
    scheduler.add(request(2, 1, max_new_tokens=1))  # would fit
    assert run_step(scheduler) == {0: 8}
    assert [run_step(scheduler) for _ in range(3)] == [{0: 1}] * 3
    assert run_step(scheduler) == {1: 8, 2: 1}


def test_what_can_never_run_is_refused_when_it_comes():
    with pytest.raises(InputError, match="got no token"):
        make_scheduler().add(request(0, 0))
    make_scheduler().add(request(0, 60))
    with pytest.raises(InputError, match=r"61 prompt \+ 4 new tokens, expected at most 64"):
        make_scheduler().add(request(0, 61))
    with pytest.raises(InputError, match="at most 20 together"):
        make_scheduler(num_blocks=5).add(request(0, 17))


def test_blocks_needed():
    assert blocks_needed([request(0, 8), request(1, 1, max_new_tokens=1), request(2, 9)], block_size=4) == 3 + 1 + 4
