"""One rank: where it stands, what it must have in common with the others, and what it shares with them.

Owns: the seam between the processes of a run and the runtime that a rank drives. Must not know which runtime it is, nor
how processes are started.

Legend: T tokens, H hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.draw_columns import DrawColumns
from qwen3moe_engine.layout import Layout, Part
from qwen3moe_engine.logits import Drawn, Logits
from qwen3moe_engine.parallel.board import Board, State
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.weights import Progress, WeightPlan


@dataclass(frozen=True)
class Place:
    """A rank of a layout. by_stage: the ranks of other stages are none of its host's, as far as it knows."""

    rank: int
    layout: Layout
    by_stage: bool = False

    @property
    def part(self) -> Part:
        return Part(self.layout, self.layout.stage_of(self.rank))

    @property
    def group_rank(self) -> int:
        return self.layout.group_rank_of(self.rank)

    @property
    def ranks_here(self) -> range:
        """Those that share memory with it."""
        if not self.by_stage:
            return range(self.layout.world_size)
        first = self.part.stage * self.layout.group_size
        return range(first, first + self.layout.group_size)

    @property
    def number_here(self) -> int:
        return self.rank - self.ranks_here.start

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
class OverlappingRunner(StageRunner, Protocol):
    """One of the only stage, that takes a step while the one before runs. All ranks draw the same tokens of the same
    logits, so that each has those that its next step is given as `carried`."""

    def launch(self, batch: Batch, draws: DrawColumns) -> Drawn: ...


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
    """What the processes of a host share: the board, a group's slots for each stage, a channel for each rank, one for
    the last stage's logits, and the mailbox of steps. first_rank: of these processes; num_ranks: of all hosts."""

    first_rank: int
    num_ranks: int
    board: Any
    groups: tuple[Any, ...]
    channels: tuple[Any, ...]
    logits: Any
    mailbox: Any

    def board_of(self, place: Place) -> Board:
        """As the process of that rank writes it."""
        return Board(self.board, len(self.channels), place.rank - self.first_rank, self.first_rank, self.num_ranks)


def signs_of_life(board: Board) -> Progress:
    """A Progress that tells the board of every weight, while a rank loads."""

    def told(plans: Sequence[WeightPlan], _: str) -> Iterator[WeightPlan]:
        for plan in plans:
            board.enter(State.STARTING)
            yield plan

    return told
