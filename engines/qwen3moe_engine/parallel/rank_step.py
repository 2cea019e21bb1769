"""A step of one rank's part of the model, with what comes from the stage before and goes to the next.

Owns: which of a host's channels carry what. Must not know which runtime computes, nor how processes are started.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.logits import HostLogits, Logits
from qwen3moe_engine.parallel.board import Board
from qwen3moe_engine.parallel.channel import Channel
from qwen3moe_engine.parallel.rank import Place, RankSpec, SharedMemory, StageRunner
from qwen3moe_engine.parallel.shared_group import SharedGroup, check_known_sum


class RankStep:
    """Steps of `runner` where every stage is on this host: a channel goes from each rank to its like in the next."""

    def __init__(self, place: Place, runner: StageRunner, memory: SharedMemory, board: Board):
        self._part, self._runner = place.part, runner
        self._is_first_of_group = place.group_rank == 0
        before, after = place.rank - place.layout.group_size, place.rank
        self._incoming = None if place.part.is_first else Channel(memory.channels[before], board)
        self._outgoing = None if place.part.is_last else Channel(memory.channels[after], board)
        self._logits = Channel(memory.logits, board)

    def run(self, batch: Batch, _: NDArray[np.float32] | None = None) -> Logits | None:
        """The step's logits, on ranks of the last stage and on rank 0."""
        hidden_states = self._incoming.receive() if self._incoming else None
        if self._outgoing is None:
            return self._runner.execute(batch, hidden_states)
        self._outgoing.send(self._runner.forward(batch, hidden_states))
        return HostLogits(self._logits.receive()) if self._part.is_first and self._is_first_of_group else None

    def follow(self, batch: Batch) -> None:
        """The same on a rank whose caller wants no logits; rank 0 gets those that another stage has."""
        logits = self.run(batch)
        if logits is not None and self._is_first_of_group:
            self._logits.send(logits.rows())
        elif logits is not None:
            logits.draw([])  # the step has ended when this returns


class StageStep:
    """Steps of `runner` where other stages are elsewhere. The first rank of the group is handed what comes from the
    stage before, and hands it to the others: each has a channel."""

    def __init__(self, place: Place, runner: StageRunner, memory: SharedMemory, board: Board):
        self._part, self._runner = place.part, runner
        channels = [Channel(one, board) for one in memory.channels]
        self._incoming, self._outgoing = channels[place.group_rank], channels[1:]

    def run(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> Logits | NDArray[np.float32]:
        """On the first rank: logits, or what enters the next stage."""
        if hidden_states is not None:
            for channel in self._outgoing:
                channel.send(hidden_states)
        return self._compute(batch, hidden_states)

    def follow(self, batch: Batch) -> None:
        result = self._compute(batch, None if self._part.is_first else self._incoming.receive())
        if not isinstance(result, np.ndarray):
            result.draw([])  # the step has ended when this returns

    def _compute(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> Logits | NDArray[np.float32]:
        if self._part.is_last:
            return self._runner.execute(batch, hidden_states)
        return self._runner.forward(batch, hidden_states)


def start_rank(spec: RankSpec, memory: SharedMemory, board: Board) -> tuple[RankStep | StageStep, StageRunner]:
    """Loads the rank, and proves its group with a known sum. Raises InputError, or RuntimeError for a wrong sum."""
    place = spec.place
    slots = memory.groups[0 if place.by_stage else place.part.stage]
    group = SharedGroup(slots, place.group_rank, place.layout.group_size, board)
    runner = spec.open(group, board)
    if place.layout.group_size > 1 and (wrong := check_known_sum(group, place.group_rank)):
        raise RuntimeError(wrong)
    return (StageStep if place.by_stage else RankStep)(place, runner, memory, board), runner
