"""One rank: where it stands, what it must have in common with the others, and a step of its part of the model.

Owns: the seam between the processes of a run and the runtime that a rank drives. Must not know which runtime it is, nor
how processes are started.

Legend: T tokens, H hidden_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.layout import Layout, Part
from qwen3moe_engine.logits import HostLogits, Logits
from qwen3moe_engine.parallel.board import Board
from qwen3moe_engine.parallel.channel import Channel
from qwen3moe_engine.parallel.shared_group import SharedGroup, check_known_sum


@dataclass(frozen=True)
class Place:
    """A rank of a layout."""

    rank: int
    layout: Layout

    @property
    def part(self) -> Part:
        return Part(self.layout, self.layout.stage_of(self.rank))

    @property
    def group_rank(self) -> int:
        return self.layout.group_rank_of(self.rank)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.layout.world_size}"


@dataclass(frozen=True)
class Facts:
    """What ranks must agree on before anything is loaded, by name: `shared` by all, `of_stage` by those of a stage."""

    shared: dict[str, str]
    of_stage: dict[str, str]


class StageRunner(Protocol):
    """A stage's share of the model on one rank, loaded."""

    num_blocks: int
    block_size: int
    max_model_len: int
    num_bytes_read: int

    def forward(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Of a stage before the last: hidden states [T, H] to hidden states. The first stage is given none."""
        ...

    def execute(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> Logits:
        """Of the last stage."""
        ...

    def abort(self, reason: str) -> None:
        """Gives up the group, so that nothing waits for a rank that is no more; only `close` may follow."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class RebalancingRunner(StageRunner, Protocol):
    """One whose experts can move."""

    def rebalance(self) -> int:
        """Moves experts within the group, as all of its ranks do between the same two steps. Returns how many came."""
        ...


class RankSpec(Protocol):
    """What one rank runs: a value that travels to its process."""

    @property
    def place(self) -> Place: ...

    def facts(self) -> Facts: ...

    def open(self, group: SharedGroup, board: Board) -> StageRunner:
        """Loads the rank's part, with a sign of life to the board now and then. Raises InputError."""
        ...


@dataclass(frozen=True)
class SharedMemory:
    """What the processes of a run share: the board, a group's slots for each stage, a channel from each rank to its
    like in the next stage, one for the last stage's logits, and the mailbox of steps."""

    board: Any
    groups: tuple[Any, ...]
    channels: tuple[Any, ...]
    logits: Any
    mailbox: Any


class RankStep:
    """Steps of `runner` with what comes from the stage before and goes to the next."""

    def __init__(self, place: Place, runner: StageRunner, memory: SharedMemory, board: Board):
        self._part, self._runner, self._board = place.part, runner, board
        self._is_first_of_group = place.group_rank == 0
        before, after = place.rank - place.layout.group_size, place.rank
        self._incoming = None if place.part.is_first else Channel(memory.channels[before], board)
        self._outgoing = None if place.part.is_last else Channel(memory.channels[after], board)
        self._logits = Channel(memory.logits, board)

    def run(self, batch: Batch) -> Logits | None:
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


def start_rank(spec: RankSpec, memory: SharedMemory, board: Board) -> tuple[RankStep, StageRunner]:
    """Loads the rank, and proves its group with a known sum. Raises InputError, or RuntimeError for a wrong sum."""
    place = spec.place
    group = SharedGroup(memory.groups[place.part.stage], place.group_rank, place.layout.group_size, board)
    runner = spec.open(group, board)
    if place.layout.group_size > 1 and (wrong := check_known_sum(group, place.group_rank)):
        raise RuntimeError(wrong)
    return RankStep(place, runner, memory, board), runner
