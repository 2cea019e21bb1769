"""A thousand random lives of a server with a fake executor: each request gets what it gets alone."""

from __future__ import annotations

from collections import Counter

import pytest
from fake_executor import EOS, VOCAB_SIZE, FakeExecutor, OverlappingFakeExecutor, expected_tokens
from hypothesis import HealthCheck, given, settings
from schedules import Driver, Schedule, schedules

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.scheduler import Scheduler

BLOCK_SIZE, MAX_PROMPT, MAX_NEW_TOKENS = 4, 30, 18
NUM_SCHEDULES = 1200


def live(schedule: Schedule, make_executor: type[FakeExecutor]) -> Counter:
    """Runs a schedule and compares every request with itself alone. Returns what happened, in counts."""
    num_blocks = num_blocks_for(schedule.max_tokens, BLOCK_SIZE) + schedule.spare_blocks
    executor = make_executor(num_blocks, BLOCK_SIZE, MAX_PROMPT + MAX_NEW_TOKENS)
    max_step_tokens = max(schedule.max_step_tokens, schedule.max_seqs)
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE),
        executor.max_model_len,
        max_step_tokens,
        schedule.max_seqs,
        schedule.max_waiting,
    )
    engine = Engine(executor, scheduler, VOCAB_SIZE, (EOS,))
    driver = Driver(engine, scheduler, schedule, VOCAB_SIZE, lambda call: setattr(executor, "on_execute", call))
    requests = driver.run()
    for arrival, request in zip(schedule.arrivals, requests, strict=True):
        if request is not None:
            expected = expected_tokens(request.prompt_ids, arrival.params)
            is_whole = request.finish_reason != "abort"
            assert request.output_ids == (expected if is_whole else expected[: len(request.output_ids)])
    assert not getattr(executor, "in_flight", []), "an idle engine leaves the executor idle"
    assert all(tokens <= max_step_tokens and seqs <= schedule.max_seqs for tokens, seqs in executor.step_sizes)
    stats = engine.stats()
    return Counter(
        schedules=1,
        requests=len(requests),
        refused=requests.count(None),
        aborted=sum(request is not None and request.finish_reason == "abort" for request in requests),
        steps=len(executor.step_sizes),
        preemptions=stats.num_preemptions,
        evictions=stats.num_evictions,
        prefix_hits=stats.num_prefix_hits,
        overlapped=getattr(executor, "num_overlapped", 0),
        carried=getattr(executor, "num_carried", 0),
    )


@pytest.mark.parametrize("make_executor", [FakeExecutor, OverlappingFakeExecutor])
def test_tokens_do_not_depend_on_who_shares_pool_and_batch(make_executor, capsys):
    """Arrivals, lengths, shared prefixes, priorities, cancellations, full queues, tiny pools and budgets."""
    totals: Counter = Counter()

    @settings(max_examples=NUM_SCHEDULES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS))
    def run(schedule):
        totals.update(live(schedule, make_executor))

    run()
    with capsys.disabled():
        print(f"\n{dict(totals)}")
    assert totals["schedules"] >= 1000
    events = ["refused", "aborted", "preemptions", "evictions", "prefix_hits"]
    events += ["overlapped", "carried"] if make_executor is OverlappingFakeExecutor else []
    assert min(totals[event] for event in events) > 100
