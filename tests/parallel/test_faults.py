"""A rank that dies, hangs, gives up or disagrees ends the whole group in time, and the message names it and why."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_rank import PATIENCE, STEP_OF_FAULT, batch, make_ranks

from qwen3moe_engine.async_engine import AsyncEngine, EngineDeadError
from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig
from qwen3moe_engine.parallel import rank_step
from qwen3moe_engine.parallel.board import DEFAULT_PATIENCE
from qwen3moe_engine.parallel.executor import ParallelExecutor
from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks
from qwen3moe_engine.parallel.rank import Place
from qwen3moe_engine.parallel.rank_group import RankGroup
from qwen3moe_engine.parallel.verdict import EXIT_CODE, RankFailedError, RankInputError
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_plugins.errors import InputError

LIMIT_SECONDS = 10.0
TP2 = Layout(tp=2)


@contextlib.contextmanager
def ends_with(error: type[Exception], said: str) -> Iterator[None]:
    """The block ends the group, in time, with all of its processes."""
    start = time.monotonic()
    with pytest.raises(error, match=said) as raised:
        yield
    seconds = time.monotonic() - start
    print(f"{seconds:.2f} s: {raised.value}")
    assert seconds < LIMIT_SECONDS
    assert not multiprocessing.active_children()


def test_without_a_fault_steps_run_on():
    with ParallelExecutor(make_ranks(Layout(tp=2, pp=2), {}), PATIENCE) as executor:
        expected = 4 * (np.arange(5, dtype=np.float32)[:, None] + 1)  # two sums of two ranks
        for _ in range(3):
            assert np.array_equal(executor.execute(batch()).rows(), expected)
        time.sleep(PATIENCE.step + 0.5)  # nobody hangs for having nothing to do
        assert np.array_equal(executor.execute(batch()).rows(), expected)
        start = time.monotonic()
    assert time.monotonic() - start < 2, "ranks close together: each waits for its peers in that"
    assert executor.runner.events == ["close"]
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_group():
    executor = ParallelExecutor(make_ranks(TP2, {0: "interrupt in step"}), PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(STEP_OF_FAULT):
            executor.execute(batch()).rows()
    assert not multiprocessing.active_children()
    with pytest.raises(RankFailedError, match="rank 0 of 2: interrupted in step 3"):
        executor.execute(batch())
    executor.close()


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("kill at start", RankFailedError, "rank 2 of 3: killed by SIGKILL at start-up"),
        ("memory at start", RankFailedError, "rank 2 of 3: MemoryError: no room for 61 GB"),
        ("refuse at start", RankInputError, "rank 2 of 3: weights: got none, expected some; fetch them"),
        ("hang at start", RankFailedError, "rank 2 of 3: no sign of life for 3 s at start-up"),
    ],
)
def test_at_start(fault, error, said):
    with ends_with(error, said):
        ParallelExecutor(make_ranks(Layout(tp=3), {2: fault}), PATIENCE)


@pytest.mark.parametrize(
    ("layout", "fault", "said"),
    [
        (TP2, "kill in step", "rank 1 of 2: killed by SIGKILL in step 3"),
        (TP2, "memory in step", "rank 1 of 2: MemoryError: no room for 61 GB"),
        (TP2, "hang in step", "rank 1 of 2: no sign of life for 2 s in step 3"),
        (TP2, "stop in step", "rank 1 of 2: no sign of life for 2 s in step 3"),
        (Layout(pp=2), "kill in step", "rank 1 of 2: killed by SIGKILL in step 3"),
    ],
    ids=str,
)
def test_in_a_step(layout, fault, said):
    executor = ParallelExecutor(make_ranks(layout, {1: fault}), PATIENCE)
    with ends_with(RankFailedError, said):
        for _ in range(STEP_OF_FAULT):
            executor.execute(batch()).rows()
    with pytest.raises(RankFailedError, match=said):
        executor.execute(batch())
    executor.close()
    events = executor.runner.events
    assert said in events[0] and events[-1] == "close", "what waits for the lost rank is given up before the rest is"


def test_stages_by_themselves():
    """As they are on hosts of their own: what enters a stage is handed to its first rank."""
    ranks = make_ranks(Layout(tp=2, pp=2), {3: "kill in step"}, by_stage=True)
    first, second = RankGroup(ranks[:2], PATIENCE), RankGroup(ranks[2:], PATIENCE)
    with ends_with(RankFailedError, "rank 3 of 4: killed by SIGKILL in step 3"):
        for _ in range(STEP_OF_FAULT - 1):
            logits = second.run(batch(), first.run(batch()))
            assert np.array_equal(logits.rows(), 4 * (np.arange(5, dtype=np.float32)[:, None] + 1))
        hidden_states = first.run(batch())
        first.close()
        second.run(batch(), hidden_states)
    second.close()


def test_between_steps():
    executor = ParallelExecutor(make_ranks(TP2, {}), PATIENCE)
    executor.execute(batch()).rows()
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(0.5)
    with ends_with(RankFailedError, "rank 1 of 2: killed by SIGKILL (in|after) step 1"):
        executor.execute(batch())
    executor.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shared": {"plan": "9999"}}, "rank 1: plan: got 9999, expected 1234 as on rank 0"),
        ({"shared": {}}, "rank 1: plan: got none, expected 1234"),
        ({"place": Place(1, Layout(tp=4))}, "rank 1: layout: got TP4, expected TP2 as on rank 0"),
        ({"place": Place(1, Layout(pp=2))}, "rank 1: layout: got PP2, expected TP2 as on rank 0"),
    ],
)
def test_ranks_that_disagree(changes, said):
    first, second = make_ranks(TP2, {})
    with ends_with(InputError, said):
        ParallelExecutor([first, dataclasses.replace(second, **changes)], PATIENCE)


def test_too_few_ranks():
    with pytest.raises(InputError, match="ranks: got 1, expected 2, for TP2"):
        ParallelExecutor(make_ranks(TP2, {})[:1], PATIENCE)


def test_a_wrong_sum_at_start(monkeypatch):
    """Rank 0 finds that the group does not add up."""
    monkeypatch.setattr(rank_step, "check_known_sum", lambda group, rank: "an all-reduce gave another sum")
    with ends_with(RankFailedError, "rank 0 of 2: RuntimeError: an all-reduce gave another sum"):
        ParallelExecutor(make_ranks(TP2, {}), PATIENCE)


def test_a_server_s_engine_hears_of_it_without_a_request():
    executor = ParallelExecutor(make_ranks(TP2, {}), PATIENCE)
    scheduler = Scheduler(
        BlockManager(executor.num_blocks, executor.block_size), executor.max_model_len, 64, max_seqs=4
    )

    async def lose_a_rank() -> float:
        async with AsyncEngine(Engine(executor, scheduler, vocab_size=1, eos_token_ids=())) as engine:
            stream = await engine.submit([0, 0, 0], SamplingParams(2, ignore_eos=True))
            assert [output.finish_reason async for output in stream][-1] == "length"
            start = time.monotonic()
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            while not engine.is_dead and time.monotonic() - start < LIMIT_SECONDS:
                await asyncio.sleep(0.02)
            with pytest.raises(EngineDeadError, match=r"rank 1 of 2: killed by SIGKILL (in|after) step 2"):
                await engine.submit([0], SamplingParams(2))
            return time.monotonic() - start

    assert asyncio.run(lose_a_rank()) < LIMIT_SECONDS
    executor.close()


@contextlib.contextmanager
def rank_0(fault: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process of its own that is rank 0, and the process id of rank 1."""
    script = Path(__file__).with_name("fault_rank.py")
    with subprocess.Popen(
        [sys.executable, str(script), fault], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_rank_0_hangs():
    """Its main thread cannot say so: the watch ends the process."""
    with rank_0("hang in step") as (process, other):
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == EXIT_CODE
    assert "Error: rank 0 of 2: no sign of life for 2 s in step 3" in errors
    assert not is_alive(other)


@pytest.mark.parametrize("in_step", [True, False])
def test_rank_0_is_stopped(in_step):
    """It cannot say so either: the others end it."""
    with rank_0("stop in step" if in_step else "pause between steps") as (process, other):
        if not in_step:
            time.sleep(0.5)
            process.send_signal(signal.SIGSTOP)
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert re.search("Error: rank 0 of 2: no sign of life for 2 s in step [13]", errors), errors
    deadline = time.monotonic() + 1
    while is_alive(other) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(other)


def test_a_caller_may_take_its_time():
    """Between steps rank 0's caller may let no other thread run, which is no standstill."""
    with rank_0("busy between steps") as (process, other):
        time.sleep(PATIENCE.step + 1.5)
        assert process.poll() is None and is_alive(other)


def test_stopped_together_all_go_on():
    """As by Ctrl-Z and `fg`."""
    with rank_0("pause between steps") as (process, other):
        time.sleep(0.5)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (process.pid, other):
                os.kill(pid, number)
            time.sleep(PATIENCE.step + 1)
        assert process.poll() is None and is_alive(other)


def test_rank_0_is_killed():
    with rank_0("none") as (process, other):
        process.kill()
        process.wait()
        deadline = time.monotonic() + LIMIT_SECONDS
        while is_alive(other) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_alive(other), "an orphan"


def is_alive(pid: int) -> bool:
    """Whether the process still runs; who has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_model_loses_a_rank(bench, phase):
    """SIGKILL while ONNX Runtime computes, on either side of a collective."""
    model = bench.model("one_kv_head")
    with bench.ranks("one_kv_head", TP2) as executor:
        (victim,) = multiprocessing.active_children()
        num_tokens = {"prefill": 100, "decode": 1}[phase]
        threading.Timer(0.3, lambda: os.kill(victim.pid, signal.SIGKILL)).start()
        with ends_with(RankFailedError, r"rank 1 of 2: killed by SIGKILL (in|after) step"):
            while True:
                bench.step(executor, model.prompts[0], num_tokens)


def test_a_rank_with_another_export(bench, tmp_path):
    export, weights = bench.export("one_kv_head", TP2), bench.model("one_kv_head").checkpoint
    shutil.copytree(export, tmp_path / "other")
    with (tmp_path / "other" / "manifest.json").open("a") as file:
        file.write("\n")
    first, second = onnxruntime_ranks(export, weights, OnnxRuntimeConfig(8))
    other = dataclasses.replace(second, export=tmp_path / "other")
    with ends_with(InputError, r"rank 1: manifest\.json: got \w{12}, expected \w{12} as on rank 0"):
        ParallelExecutor([first, other], DEFAULT_PATIENCE)


def test_a_rank_without_weights(bench, tmp_path):
    """What another rank finds in the user's files is bad input, as on one rank."""
    export = bench.export("one_kv_head", TP2)
    first, second = onnxruntime_ranks(export, bench.model("one_kv_head").checkpoint, OnnxRuntimeConfig(8))
    with ends_with(RankInputError, f"rank 1 of 2: {tmp_path}: got no weights"):
        ParallelExecutor([first, dataclasses.replace(second, weights=tmp_path)], DEFAULT_PATIENCE)
