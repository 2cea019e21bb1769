"""What is asked for, and when."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.record import RequestRecord
from qwen3moe_engine.bench.workload import GivenPrompts, LengthRange, RandomPrompts, WorkItem, make_workload
from qwen3moe_plugins.errors import InputError


def test_random_prompts_have_lengths_of_the_range_and_the_shared_prefix():
    items = make_workload(RandomPrompts(LengthRange(3, 6), 50, prefix_len=4), LengthRange(1, 2), 200, seed=3)
    assert {len(item.prompt) for item in items} == {7, 8, 9, 10} and {item.max_tokens for item in items} == {1, 2}
    assert len({item.prompt[:4] for item in items}) == 1 and len({item.prompt[4:7] for item in items}) > 150
    assert {token for item in items for token in item.prompt} <= set(range(50))


def test_a_workload_follows_from_its_seed():
    first, again, other = (
        make_workload(RandomPrompts(LengthRange(3, 6), 50), LengthRange(1, 9), 20, s) for s in (1, 1, 2)
    )
    assert first == again != other


def test_given_prompts_start_again_where_there_are_too_few():
    items = make_workload(GivenPrompts(("a", "b")), LengthRange(7, 7), 5, seed=0)
    assert items == [WorkItem(text, 7) for text in "ababa"]


@pytest.mark.parametrize("text", ["", "0", "-3", "5-", "8-5", "x", "1-2-3", "1.5"])
def test_wrong_lengths_are_refused(text):
    with pytest.raises(InputError, match="--input-len"):
        LengthRange.parse(text, "--input-len")


def test_lengths_are_a_number_or_a_range():
    assert LengthRange.parse("128", "") == LengthRange(128, 128) and LengthRange.parse("5-9", "") == LengthRange(5, 9)


def test_poisson_gaps_are_exponential_with_the_mean_of_the_rate():
    offsets = np.array(Poisson(20.0, seed=5).offsets(20_001))
    gaps = np.diff(offsets)
    assert offsets[0] == 0 and (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03) and gaps.std() == pytest.approx(1 / 20, rel=0.03)
    assert (gaps > 1 / 20).mean() == pytest.approx(math.exp(-1), abs=0.015)


def test_an_infinite_rate_sends_all_at_once():
    assert Poisson(math.inf, seed=0).offsets(4) == [0.0] * 4


def drive(arrivals, num_items: int, seconds: float) -> tuple[list[RequestRecord], int]:
    """Through a sender that takes so many seconds; with the most that were under way at a time."""
    running = most = 0

    async def send(item: WorkItem, due: float) -> RequestRecord:
        nonlocal running, most
        running += 1
        most, start = max(most, running), time.perf_counter()
        await asyncio.sleep(seconds)
        running -= 1
        return RequestRecord(due, start, time.perf_counter())

    items = [WorkItem((1,), 1)] * num_items
    return asyncio.run(arrivals.drive(send, items)), most


def test_a_closed_loop_keeps_its_concurrency():
    records, most = drive(ClosedLoop(3), 10, 0.02)
    assert len(records) == 10 and most == 3


def test_an_open_loop_waits_for_nobody():
    arrivals = Poisson(100.0, seed=1)
    records, most = drive(arrivals, 20, 0.5)
    assert len(records) == 20 and most == 20
    dues = np.array([record.due for record in records])
    assert np.allclose(dues - dues[0], arrivals.offsets(20))
    assert all(0 <= record.start - record.due < 0.4 for record in records)
