"""Many ranks behind the seam of one executor: this process is rank 0, and starts one for each other rank.

Owns: when experts move, and that logits are watched until they are there. Must not know requests, nor which runtime the
ranks drive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.draw_columns import columns_of
from qwen3moe_engine.logits import Draw, Drawn, Logits
from qwen3moe_engine.parallel.board import DEFAULT_PATIENCE, Patience
from qwen3moe_engine.parallel.rank import RankSpec, StageRunner
from qwen3moe_engine.parallel.rank_group import RankGroup


class ParallelExecutor:
    """Implements `Executor` over `specs`, one for each rank, the first run by this process.

    Raises InputError if ranks disagree, and RankFailedError, at start or in a step, if one dies, hangs or gives up;
    then all of them have ended. `ready`: what each rank reported when it had loaded. runner: this rank's.
    rebalance_steps: how many steps lie between two moves of experts, None for no move. num_experts_moved: to this rank.
    """

    def __init__(
        self,
        specs: Sequence[RankSpec],
        patience: Patience = DEFAULT_PATIENCE,
        rebalance_steps: int | None = None,
    ):
        self._group = RankGroup(specs, patience)
        self._rebalance_steps, self._num_steps, self.num_experts_moved = rebalance_steps, 0, 0
        self.ready = self._group.ready
        self.num_blocks = min(ready.num_blocks for ready in self.ready)
        self.block_size, self.max_model_len = self.runner.block_size, self.runner.max_model_len

    @property
    def runner(self) -> StageRunner:
        return self._group.runner

    def execute(self, batch: Batch) -> Logits:
        self._begin_step()
        logits = self._group.run(batch)
        assert not isinstance(logits, np.ndarray)
        return WatchedLogits(self._group, logits)

    def rebalance(self) -> int:
        """Moves experts to where the work of ranks is even, by what was counted since the last time, between two steps.
        Returns how many came to this rank."""
        num_moved = self._group.rebalance()
        self.num_experts_moved += num_moved
        return num_moved

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        self._group.when_failed(tell)

    def close(self) -> None:
        """Ends every rank; a second call does nothing."""
        self._group.close()

    def _begin_step(self) -> None:
        if self._rebalance_steps and self._num_steps and self._num_steps % self._rebalance_steps == 0:
            self.rebalance()
        self._num_steps += 1

    def __enter__(self) -> ParallelExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OverlappingParallelExecutor(ParallelExecutor):
    """The same over ranks that are `OverlappingRunner`s."""

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> WatchedDrawn:
        """`OverlappingExecutor.launch`."""
        self._begin_step()
        return WatchedDrawn(self._group, self._group.launch(batch, columns_of(draws)))


@dataclass(frozen=True)
class WatchedDrawn:
    """As `WatchedLogits`."""

    group: RankGroup
    drawn: Drawn

    def tokens(self) -> list[int]:
        with self.group.at_work():
            return self.drawn.tokens()


@dataclass(frozen=True)
class WatchedLogits:
    """A step may still run when its logits are asked for: then, too, its ranks are watched."""

    group: RankGroup
    logits: Logits

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        with self.group.at_work():
            return self.logits.draw(draws)

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        with self.group.at_work():
            return self.logits.rows(indices)
