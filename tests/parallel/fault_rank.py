"""Ranks that do nothing but sum, and go wrong where they are told to.

Run as a script it is rank 0 of two: `fault_rank.py FAULT` takes steps until something happens, and prints the other
rank's process id first.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.logits import HostLogits
from qwen3moe_engine.parallel.board import Board, Patience
from qwen3moe_engine.parallel.executor import ParallelExecutor
from qwen3moe_engine.parallel.rank import Facts, Place
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_plugins.errors import InputError

PATIENCE = Patience(start=3.0, step=2.0)
STEP_OF_FAULT = 3


@dataclass(frozen=True)
class FaultRank:
    """`fault`: what happens on this rank, as "what where": as `happen` has it; at start or in a step."""

    place: Place
    fault: str = "none"
    shared: dict[str, str] = field(default_factory=lambda: {"plan": "1234"})

    def facts(self) -> Facts:
        return Facts(self.shared | {"layout": str(self.place.layout)}, {"manifest": f"of {self.place.part.stage}"})

    def open(self, group: SharedGroup, board: Board) -> Runner:
        if self.fault.endswith("start"):
            happen(self.fault)
        return Runner(group, self.fault)


class Runner:
    """Every step gives the sum over the group of (token + 1)."""

    num_blocks, block_size, max_model_len, num_bytes_read = 64, 16, 1024, 0

    def __init__(self, group: SharedGroup, fault: str):
        self._group, self._fault, self._num_steps = group, fault, 0
        self.events: list[str] = []

    def execute(self, batch: Batch, hidden_states: np.ndarray | None = None) -> HostLogits:
        return HostLogits(self.forward(batch, hidden_states)[batch.logits_indices])

    def forward(self, batch: Batch, hidden_states: np.ndarray | None = None) -> np.ndarray:
        self._num_steps += 1
        if self._fault.endswith("step") and self._num_steps == STEP_OF_FAULT:
            happen(self._fault)
        mine = batch.tokens[:, None].astype(np.float32) + 1 if hidden_states is None else hidden_states
        return self._group.all_reduce(mine)

    def abort(self, reason: str) -> None:
        self.events.append(reason)

    def close(self) -> None:
        """As a communicator's, it waits for the peers, but not for those of a group that was given up."""
        if not self.events:
            self._group.all_reduce(np.ones((1, 1), np.float32))
        self.events.append("close")


def happen(fault: str) -> None:
    what = fault.partition(" ")[0]
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "hang":
        time.sleep(1000)
    elif what == "memory":
        raise MemoryError("no room for 61 GB")
    elif what == "interrupt":
        raise KeyboardInterrupt
    elif what == "refuse":
        raise InputError("weights", got="none", expected="some", remedy="fetch them")


def make_ranks(layout: Layout, faults: dict[int, str], by_stage: bool = False) -> list[FaultRank]:
    return [FaultRank(Place(rank, layout, by_stage), faults.get(rank, "none")) for rank in range(layout.world_size)]


def batch() -> Batch:
    return pack_batch([SequenceStep(np.arange(5, dtype=np.int32), 0, [3])], 16)


def stay(what: str) -> None:
    """Between two steps: for a while, or, busy, without another thread of this process running."""
    if what == "pause":
        time.sleep(60)
    elif what == "busy":
        ctypes.PyDLL(None).sleep(60)  # a call that keeps the interpreter's lock


if __name__ == "__main__":
    fault, _, where = sys.argv[1].partition(" between ")
    with ParallelExecutor(make_ranks(Layout(tp=2), {0: fault}), PATIENCE) as executor:
        print(multiprocessing.active_children()[0].pid, flush=True)
        while True:
            executor.execute(batch()).rows()
            if where:
                stay(fault)
