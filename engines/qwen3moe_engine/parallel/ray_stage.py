"""One stage of a pipeline as a Ray actor: the first rank of the stage, which starts the others on its host.

Owns: what the driver of a pipeline may ask of a stage. Errors leave it as RankFailedError or RankInputError, which
travel. Needs the extra `ray`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.logits import Draw
from qwen3moe_engine.parallel.board import Patience
from qwen3moe_engine.parallel.executor import WatchedLogits
from qwen3moe_engine.parallel.rank import Facts, RankSpec
from qwen3moe_engine.parallel.rank_group import RankGroup
from qwen3moe_engine.parallel.verdict import EXIT_CODE, RankFailedError, RankInputError
from qwen3moe_engine.parallel.worker import Ready
from qwen3moe_plugins.errors import InputError

WATCH = "watch"  # the concurrency group of what is answered while a step runs
BEAT_SECONDS = 0.5


@dataclass(frozen=True)
class LoadedStage:
    """ready: of each of its ranks."""

    ready: tuple[Ready, ...]
    block_size: int
    max_model_len: int


class RayStage:
    """`specs`: the stage's ranks, the first run by this process."""

    def __init__(self, specs: Sequence[RankSpec], patience: Patience):
        self._specs, self._patience = specs, patience
        self._group: RankGroup | None = None
        self._logits: WatchedLogits | None = None
        self._has_failed = threading.Event()
        self._failure: RankFailedError | RankInputError | None = None
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def facts(self) -> Facts:
        with _travelling_errors():
            return self._specs[0].facts()

    def load(self) -> LoadedStage:
        with _travelling_errors():
            group = self._group = RankGroup(self._specs, self._patience)
            group.when_failed(self._fail)
            return LoadedStage(group.ready, group.runner.block_size, group.runner.max_model_len)

    def run(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """A step: what enters the next stage; None of the last, which keeps its logits."""
        assert self._group is not None
        with _travelling_errors():
            result = self._group.run(batch, hidden_states)
        if isinstance(result, np.ndarray):
            return result
        self._logits = WatchedLogits(self._group, result)
        return None

    def draw(self, _: None, draws: Sequence[Draw]) -> list[int]:
        """Of the last stage, as `Logits.draw`. Takes the step's result, so as to come after it and to fail with it."""
        assert self._logits is not None
        with _travelling_errors():
            return self._logits.draw(draws)

    def rows(self, _: None, indices: Sequence[int] | None) -> NDArray[np.float32]:
        assert self._logits is not None
        with _travelling_errors():
            return self._logits.rows(indices)

    @ray.method(concurrency_group=WATCH)
    def beat(self) -> None:
        """Returns after a while. Raises, as soon as it is so, why the stage can do no more."""
        if self._has_failed.wait(BEAT_SECONDS):
            assert self._failure is not None
            raise self._failure

    def close(self) -> None:
        if self._group is not None:
            with _travelling_errors():
                self._group.close()

    def _fail(self, error: Exception) -> None:
        self._failure = error if isinstance(error, RankFailedError) else RankInputError(str(error))
        self._has_failed.set()


def _end_with_parent() -> None:
    """With the Ray of this host, which started this process: it would work on while the others take 15 s to miss it."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(BEAT_SECONDS)
    os._exit(EXIT_CODE)


@contextmanager
def _travelling_errors() -> Iterator[None]:
    """An InputError cannot be made anew from its text alone, as the receiver does."""
    try:
        yield
    except InputError as error:
        raise RankInputError(str(error)) from None
