"""What runs in a step: by priority, then by arrival, within the budgets of tokens, sequences and blocks."""

from __future__ import annotations

import pytest

from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import QueueFullError, Scheduler
from qwen3moe_engine.step_plan import ScheduledRequest, StepPlan
from qwen3moe_plugins.errors import InputError


def make_scheduler(num_blocks=100, max_model_len=64, max_step_tokens=16, max_seqs=4, max_waiting=64) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, block_size=4), max_model_len, max_step_tokens, max_seqs, max_waiting)


def request(request_id: int, num_prompt: int, max_new_tokens: int = 4, priority: int = 0) -> Request:
    """Prompts that share no block."""
    prompt = tuple(100 * request_id + i for i in range(num_prompt))
    return Request(request_id, prompt, SamplingParams(max_new_tokens), priority)


def compute(scheduler: Scheduler, plan: StepPlan) -> dict[int, int]:
    """Does to the requests what an engine does. Returns the tokens of each in the step."""
    assert plan.num_tokens <= scheduler.max_step_tokens
    scheduler.commit(plan)
    for item in plan.scheduled:
        if item.samples:
            item.request.append(7, eos_token_ids=())
            scheduler.take(item.request)
    scheduler.check_invariants()
    return {item.request.request_id: item.num_new for item in plan.scheduled}


def run_step(scheduler: Scheduler) -> dict[int, int]:
    return compute(scheduler, scheduler.schedule())


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
    scheduler.add(request(0, 8))  # 12 tokens: 3 blocks in the end
    scheduler.add(request(1, 8))  # finds two, but not one more for each to grow
    scheduler.add(request(2, 1, max_new_tokens=1))  # would fit
    assert [run_step(scheduler) for _ in range(4)] == [{0: 8}, {0: 1}, {0: 1}, {0: 1}]
    assert run_step(scheduler) == {1: 8, 2: 1}


def test_higher_priority_first_then_arrival():
    scheduler = make_scheduler(max_seqs=1)
    for request_id, priority in enumerate((0, -1, 0, 5)):
        scheduler.add(request(request_id, 2, max_new_tokens=1, priority=priority))
    assert [run_step(scheduler) for _ in range(4)] == [{3: 2}, {0: 2}, {2: 2}, {1: 2}]


def test_chunks_go_to_the_higher_priority():
    scheduler = make_scheduler()
    scheduler.add(request(0, 30))
    assert run_step(scheduler) == {0: 16}
    scheduler.add(request(1, 30, priority=1))
    assert run_step(scheduler) == {0: 14, 1: 2}
    assert run_step(scheduler) == {1: 15, 0: 1}


def test_without_blocks_the_last_in_order_gives_up_its_own():
    scheduler = make_scheduler(num_blocks=5)
    requests = [request(0, 4, 8, priority=-1), request(1, 4, 8), request(2, 4, 8, priority=1)]
    for item in requests:
        scheduler.add(item)
    assert run_step(scheduler) == {2: 4, 1: 4}  # the third would leave them too few to grow
    assert run_step(scheduler) == {2: 1, 1: 1}
    assert [run_step(scheduler) for _ in range(3)] == [{2: 1, 1: 1}] * 3
    plan = scheduler.schedule()
    assert plan.preempted == (requests[1],) and [item.request for item in plan.scheduled] == [requests[2]]
    assert requests[1].output_ids == [7] * 5 and not requests[1].block_ids
    compute(scheduler, plan)


def test_who_was_preempted_comes_back_first_and_finds_its_blocks():
    scheduler = make_scheduler(num_blocks=4)
    for request_id in range(3):
        scheduler.add(request(request_id, 4, max_new_tokens=12 if request_id else 6))
    plans = []
    while scheduler.has_work:
        plans.append(scheduler.schedule())
        compute(scheduler, plans[-1])
    (victim,) = next(plan.preempted for plan in plans if plan.preempted)
    back = [item for plan in plans for item in plan.scheduled if item.request is victim and item.num_cached]
    assert victim.request_id == 1 and [item.num_cached for item in back] == [4], "its second block was needed"
    stats = scheduler.stats()
    assert stats.num_preemptions == 1 and len(victim.output_ids) == 12
    assert (stats.num_prompt_tokens, stats.num_prefix_hits) == (12, 0), "each prompt counts once"


def test_a_block_is_shared_only_behind_the_step_that_fills_it():
    """Three equal prompts: the second arrives while the first is computed, the third after it."""
    scheduler = make_scheduler()
    prompt = tuple(range(13))
    same = [Request(request_id, prompt, SamplingParams(4)) for request_id in range(3)]
    for item in same[:2]:
        scheduler.add(item)
    plan = scheduler.schedule()
    assert [(item.num_new, item.num_cached) for item in plan.scheduled] == [(13, 0), (3, 0)]
    compute(scheduler, plan)
    scheduler.add(same[2])
    plan = scheduler.schedule()
    assert plan.scheduled[-1] == ScheduledRequest(same[2], start=12, num_new=1, samples=True, num_cached=12)
    assert same[2].block_ids[:3] == same[0].block_ids[:3]
    compute(scheduler, plan)


def test_a_decision_is_a_line_of_text():
    scheduler = make_scheduler()
    scheduler.add(request(0, 5))
    assert "start=0, num_new=5, samples=True, num_cached=0" in str(scheduler.schedule())


def test_a_full_queue_refuses_newcomers_but_never_who_was_preempted():
    scheduler = make_scheduler(num_blocks=5, max_seqs=2, max_waiting=1)
    for request_id in range(2):
        scheduler.add(request(request_id, 4, max_new_tokens=12))
        run_step(scheduler)
    scheduler.add(request(2, 4))
    with pytest.raises(QueueFullError):
        scheduler.add(request(3, 4))
    while not scheduler.stats().num_preemptions:
        run_step(scheduler)
    assert scheduler.stats().num_waiting == 2 and scheduler.is_full


def test_what_can_never_run_is_refused_when_it_comes():
    with pytest.raises(InputError, match="got no token"):
        make_scheduler().add(request(0, 0))
    make_scheduler().add(request(0, 60))
    with pytest.raises(InputError, match=r"61 prompt \+ 4 new tokens, expected at most 64"):
        make_scheduler().add(request(0, 61))
    with pytest.raises(InputError, match="at most 20 together"):
        make_scheduler(num_blocks=5).add(request(0, 17))


# while a step is in flight


def start_step(scheduler: Scheduler) -> StepPlan:
    """As an engine does that does not wait for the step."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    scheduler.check_invariants()
    return plan


def take(scheduler: Scheduler, plan: StepPlan, token: int = 7, eos_token_ids: tuple[int, ...] = ()) -> None:
    """What the step gave, a token for each."""
    for item in plan.scheduled:
        if item.samples and item.request.finish_reason is None:
            item.request.append(token, eos_token_ids)
            scheduler.take(item.request)
    scheduler.check_invariants()


def parts(plan: StepPlan) -> dict[int, tuple[int, int]]:
    return {item.request.request_id: (item.start, item.num_new) for item in plan.scheduled}


def test_a_step_is_planned_before_the_tokens_of_the_last_are_known():
    scheduler = make_scheduler()
    scheduler.add(request(0, 20))
    scheduler.add(request(1, 3))
    first = start_step(scheduler)
    second = start_step(scheduler)
    assert (parts(first), parts(second)) == ({0: (0, 16)}, {0: (16, 4), 1: (0, 3)})
    take(scheduler, first)
    third = start_step(scheduler)
    assert parts(third) == {0: (20, 1), 1: (3, 1)} and third.scheduled[0].request.num_known == 20
    take(scheduler, second)
    assert third.scheduled[0].request.num_known == 21


def test_who_has_its_last_token_in_flight_makes_room_at_once():
    scheduler = make_scheduler(num_blocks=2, max_seqs=1)
    scheduler.add(request(0, 4, max_new_tokens=2))
    scheduler.add(request(1, 4, max_new_tokens=1))
    first, second = start_step(scheduler), start_step(scheduler)
    assert parts(second) == {0: (4, 1)} and scheduler.blocks.num_free == 2
    take(scheduler, first)
    third = start_step(scheduler)
    assert parts(third) == {1: (0, 4)}, "the blocks are the other's before the last token is known"
    assert not scheduler.schedule().scheduled and scheduler.has_work and scheduler.stats().num_running == 2
    take(scheduler, second)
    take(scheduler, third)
    assert not scheduler.has_work


def test_a_block_can_be_shared_once_its_last_token_is_known():
    """The step that computes it need not have run: who shares it comes in a later one."""
    scheduler = make_scheduler()
    leader = request(0, 7, max_new_tokens=8)
    scheduler.add(leader)
    first = start_step(scheduler)
    assert [scheduler.blocks.is_registered(block_id) for block_id in leader.block_ids] == [True, False]
    second = start_step(scheduler)  # computes the last token of the second block, which `first` gives
    assert not scheduler.blocks.is_registered(leader.block_ids[1])
    take(scheduler, first)
    assert scheduler.blocks.is_registered(leader.block_ids[1])
    scheduler.add(Request(1, (*leader.prompt_ids, 7, 5), SamplingParams(4)))
    third = start_step(scheduler)
    assert third.scheduled[-1].num_cached == 8
    take(scheduler, second)


@pytest.mark.parametrize("eos_token_ids", [(), (7,)])
def test_who_is_preempted_with_a_token_in_flight_gets_it_while_it_waits(eos_token_ids):
    scheduler = make_scheduler(num_blocks=5)
    older, younger = request(0, 4, max_new_tokens=8), request(1, 4, max_new_tokens=8)
    scheduler.add(older)
    scheduler.add(younger)
    plans = [start_step(scheduler)]
    while not (plan := start_step(scheduler)).preempted:
        assert plan.scheduled, "nobody was preempted"
        take(scheduler, plans.pop())
        plans.append(plan)
    assert plan.preempted == (younger,) and younger.num_pending == 1 and not younger.block_ids
    num_known = younger.num_known
    for item in plans[0].scheduled:
        if item.request is younger:
            younger.append(7, eos_token_ids)
            scheduler.take(younger)
    scheduler.check_invariants()
    assert younger.num_known == num_known + 1 and not younger.num_pending
    assert scheduler.stats().num_waiting == (0 if eos_token_ids else 1)


def test_a_token_behind_the_end_is_superfluous_and_its_block_free():
    scheduler = make_scheduler()
    one = request(0, 4)
    scheduler.add(one)
    first, second = start_step(scheduler), start_step(scheduler)
    take(scheduler, first, eos_token_ids=(7,))
    assert one.finish_reason == "stop" and scheduler.blocks.num_used == 0 and not scheduler.has_work
    take(scheduler, second)
    assert one.output_ids == [7]
