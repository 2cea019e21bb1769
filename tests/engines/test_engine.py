"""The generation loop with a fake executor, whose next token follows from everything a sequence has in the cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_executor import EOS, VOCAB_SIZE, FakeExecutor, OverlappingFakeExecutor, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import QueueFullError, Scheduler
from qwen3moe_plugins.errors import InputError

BLOCK_SIZE, MAX_MODEL_LEN = 4, 48


@pytest.fixture(scope="module", params=[FakeExecutor, OverlappingFakeExecutor])
def make_engine(request) -> Callable[..., tuple[Engine, FakeExecutor]]:
    def make(num_blocks: int = 40, max_step_tokens: int = 16, max_seqs: int = 4, max_waiting: int = 1024):
        executor = request.param(num_blocks, BLOCK_SIZE, MAX_MODEL_LEN)
        blocks = BlockManager(num_blocks, BLOCK_SIZE)
        scheduler = Scheduler(blocks, MAX_MODEL_LEN, max_step_tokens, max_seqs, max_waiting)
        return Engine(executor, scheduler, VOCAB_SIZE, (EOS,)), executor

    return make


PROMPTS = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30), min_size=1, max_size=8)
PARAMS = st.builds(SamplingParams, max_new_tokens=st.integers(1, 18), ignore_eos=st.booleans())


@settings(deadline=None)
@given(PROMPTS, PARAMS, st.integers(12, 60), st.integers(1, 20), st.integers(1, 5))
def test_tokens_do_not_depend_on_who_shares_the_batch(
    make_engine, prompts, params, num_blocks, max_step_tokens, max_seqs
):
    """Whatever the budgets, each request gets what it gets alone; budgets hold and every block comes back."""
    max_step_tokens = max(max_step_tokens, max_seqs)
    engine, executor = make_engine(num_blocks, max_step_tokens, max_seqs)
    completions = engine.generate(prompts, params)
    assert [list(c.token_ids) for c in completions] == [expected_tokens(prompt, params) for prompt in prompts]
    for completion in completions:
        stopped = completion.token_ids[-1] == EOS and not params.ignore_eos
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert all(tokens <= max_step_tokens and seqs <= max_seqs for tokens, seqs in executor.step_sizes)
    assert engine._scheduler.blocks.num_free == num_blocks and not engine.has_work


@settings(deadline=None)
@given(PROMPTS, st.lists(st.integers(0, 6), min_size=8, max_size=8))
def test_requests_may_arrive_while_others_run(make_engine, prompts, steps_between):
    engine, _ = make_engine()
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    requests, finished = [], []
    for prompt, num_steps in zip(prompts, steps_between, strict=False):
        requests.append(engine.add_request(prompt, params))
        for _ in range(num_steps if engine.has_work else 0):
            if engine.has_work:
                finished += engine.step()
    while engine.has_work:
        finished += engine.step()
    assert [request.output_ids for request in requests] == [expected_tokens(prompt, params) for prompt in prompts]
    assert sorted(request.request_id for request in finished) == [request.request_id for request in requests]


def test_every_prompt_is_checked_before_any_runs(make_engine):
    engine, executor = make_engine()
    for bad, said in (
        ([], "no token"),
        ([VOCAB_SIZE], r"token ids \[61\]"),
        ([-1], "token ids"),
        ([1] * 48, "at most"),
    ):
        with pytest.raises(InputError, match=said):
            engine.generate([[1, 2], bad], SamplingParams(4))
    assert not executor.step_sizes and not engine.has_work
    assert engine.generate([[1, 2]], SamplingParams(4))[0].token_ids == tuple(
        expected_tokens([1, 2], SamplingParams(4))
    )


def run_to_end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine._scheduler.check_invariants()


def test_generate_feeds_a_short_queue(make_engine):
    engine, _ = make_engine(max_waiting=2)
    prompts = [[index, 3] for index in range(9)]
    completions = engine.generate(prompts, SamplingParams(5))
    assert [list(c.token_ids) for c in completions] == [expected_tokens(p, SamplingParams(5)) for p in prompts]


def test_a_full_queue_says_so(make_engine):
    engine, _ = make_engine(max_waiting=2)
    first, _ = (engine.add_request([1], SamplingParams(4)) for _ in range(2))
    with pytest.raises(QueueFullError, match="got 2 waiting requests"):
        engine.add_request([1], SamplingParams(4))
    engine.abort(first)
    engine.add_request([1], SamplingParams(4))
    assert engine.stats().num_waiting == 2


def test_a_step_without_work_does_nothing(make_engine):
    engine, executor = make_engine()
    assert engine.step() == [] and not executor.step_sizes


def test_the_second_of_a_prompt_computes_its_last_block_only(make_engine):
    engine, executor = make_engine(max_step_tokens=64)
    params = SamplingParams(1)
    prompt = [7 * i % VOCAB_SIZE for i in range(16)]  # four full blocks: even then the last token needs logits
    first, second = (engine.generate([prompt], params) for _ in range(2))
    assert first == second
    assert [num_tokens for num_tokens, _ in executor.step_sizes] == [16, 4]
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_prefix_hits, stats.num_blocks_used) == (32, 12, 0)


def test_a_failed_step_can_be_run_again(make_engine):
    """An executor that raises leaves nothing half done."""
    engine, executor = make_engine()
    request = engine.add_request([3, 1, 4, 1, 5, 9], SamplingParams(6, ignore_eos=True))
    engine.step()

    def fail() -> None:
        raise RuntimeError("lost the device")

    executor.on_execute = fail
    with pytest.raises(RuntimeError, match="lost the device"):
        engine.step()
    engine._scheduler.check_invariants()
    executor.on_execute = lambda: None
    run_to_end(engine)
    assert request.output_ids == expected_tokens(request.prompt_ids, request.params)


@pytest.mark.parametrize("num_steps", range(8))
@pytest.mark.parametrize("midway", [False, True])
def test_an_aborted_request_is_gone_at_once(make_engine, num_steps, midway):
    """Waiting, in the middle of its prompt, decoding, while a step runs, finished: others never notice."""
    engine, executor = make_engine(max_step_tokens=6, max_seqs=2)
    params = SamplingParams(4, ignore_eos=True)
    victim, other = engine.add_request(list(range(14)), params), engine.add_request(list(range(10)), params)
    for _ in range(num_steps):
        engine.step()
    is_done = victim.finish_reason == "length"
    executor.on_execute = lambda: engine.abort(victim) if midway else None
    if not midway:
        engine.abort(victim)
    returned = engine.step()
    executor.on_execute = lambda: None
    assert victim.finish_reason == ("length" if is_done else "abort")
    assert not victim.block_ids and victim not in returned
    engine._scheduler.check_invariants()
    run_to_end(engine)
    assert other.output_ids == expected_tokens(other.prompt_ids, params)
    assert engine.stats().num_blocks_used == 0


def test_an_error_leaves_nothing_of_generate_behind(make_engine):
    engine, executor = make_engine(max_seqs=1, max_waiting=1)

    def fail() -> None:
        if len(executor.step_sizes) == 3:
            raise RuntimeError("lost the device")

    executor.on_execute = fail
    with pytest.raises(RuntimeError, match="lost the device"):
        engine.generate([[1, 2, 3]] * 4, SamplingParams(8, ignore_eos=True))
    assert not engine.has_work and engine.stats().num_blocks_used == 0
    engine._scheduler.check_invariants()
