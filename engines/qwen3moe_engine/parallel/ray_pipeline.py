"""A pipeline over the hosts of a Ray cluster: this process schedules, and computes nothing.

Owns: what goes from stage to stage, the watch over them, and the end of all when one fails. A stage's own ranks are its
host's to watch. Needs the extra `ray`.

A stage is an actor, and Ray brings its result from its host to the next one's, which this process does not wait for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError, RayTaskError

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.logits import Draw, Logits
from qwen3moe_engine.parallel.agreement import check_agreement
from qwen3moe_engine.parallel.board import DEFAULT_PATIENCE, Patience
from qwen3moe_engine.parallel.rank import RankSpec
from qwen3moe_engine.parallel.ray_placement import Placement, connect
from qwen3moe_engine.parallel.ray_stage import LoadedStage
from qwen3moe_engine.parallel.verdict import RankFailedError, Verdict
from qwen3moe_plugins.errors import InputError

_POLL_SECONDS = 0.2
_CLOSING_SECONDS = 10.0


class RayPipeline:
    """Implements `Executor` over `specs`, one for each rank, each by stage.

    address: of the cluster, "auto" for this host's. num_gpus: that a rank takes; else it takes a core. Raises
    InputError if ranks disagree or the cluster has no room, and RankFailedError as `ParallelExecutor` does.
    """

    def __init__(
        self, specs: Sequence[RankSpec], address: str, num_gpus: int = 0, patience: Patience = DEFAULT_PATIENCE
    ):
        layout = specs[0].place.layout
        stages = [specs[first : first + layout.group_size] for first in range(0, layout.world_size, layout.group_size)]
        connect(address)
        self._verdict: Verdict | None = None
        self._tell: Callable[[Exception], None] = lambda verdict: None
        self._lock, self._is_closing = threading.RLock(), False
        self._placement = Placement(stages, num_gpus, patience)
        self._actors, self._names = self._placement.actors, [_name(stage) for stage in stages]
        self._patience, self._is_loaded = patience, False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        try:
            facts = self.get([actor.facts.remote() for actor in self._actors])
            check_agreement({stage[0].place.rank: found for stage, found in zip(stages, facts, strict=True)}, layout)
            loaded: list[LoadedStage] = self.get([actor.load.remote() for actor in self._actors])
        except BaseException:
            self.close()
            raise
        self._is_loaded = True
        self.ready = tuple(ready for stage in loaded for ready in stage.ready)
        self.num_blocks = min(ready.num_blocks for ready in self.ready)
        self.block_size, self.max_model_len = loaded[0].block_size, loaded[0].max_model_len

    def execute(self, batch: Batch) -> Logits:
        self._check()
        step = None
        for actor in self._actors:
            step = actor.run.remote(batch, step)
        return _RemoteLogits(self, self._actors[-1], step)

    def get(self, found: Any) -> Any:
        """The values of Ray's references. Raises the verdict if there is one first."""
        wanted = found if isinstance(found, list) else [found]
        while len(ray.wait(wanted, num_returns=len(wanted), timeout=_POLL_SECONDS)[0]) < len(wanted):
            self._check()
        try:
            return ray.get(found)
        except RayError as error:
            self._convict(error)
            raise (self._verdict or error) from None

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        """Calls `tell` with the verdict, from another thread, or at once if there is one."""
        with self._lock:
            if self._verdict is None:
                self._tell = tell
                return
        tell(self._verdict)

    def close(self) -> None:
        """Ends every rank; a second call does nothing."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        if self._verdict is None:
            closing = [actor.close.remote() for actor in self._actors]
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSING_SECONDS)
        self._placement.close()
        self._thread.join()

    def __enter__(self) -> RayPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._verdict is not None:
            raise self._verdict

    def _watch(self) -> None:
        """Every stage has to answer again and again, that its ranks are well."""
        beats = {actor.beat.remote(): (number, time.monotonic()) for number, actor in enumerate(self._actors)}
        while not self._is_closing and self._verdict is None:
            for beat in ray.wait(list(beats), timeout=_POLL_SECONDS)[0]:
                number, _ = beats.pop(beat)
                try:
                    ray.get(beat)
                except RayError as error:
                    self._convict(error)
                beats[self._actors[number].beat.remote()] = (number, time.monotonic())
            limit = self._patience.step if self._is_loaded else self._patience.start
            for number, since in beats.values():
                if time.monotonic() - since > limit:
                    self._fail(RankFailedError(f"{self._names[number]}: no sign of life for {limit:g} s"))

    def _convict(self, error: RayError) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RankFailedError | InputError):
            self._fail(cause)
        elif isinstance(cause, RayActorError):
            number = [actor._actor_id.hex() for actor in self._actors].index(cause.actor_id)
            self._fail(RankFailedError(f"{self._names[number]}: its process or its host ended"))
        else:
            self._fail(RankFailedError(f"a stage of the pipeline: {type(cause).__name__}: {cause}"))

    def _fail(self, verdict: Verdict) -> None:
        """The first verdict stands, and ends all stages."""
        with self._lock:
            if self._verdict is not None or self._is_closing:
                return
            self._verdict = verdict
            self._placement.close()
            tell = self._tell
        tell(verdict)


@dataclass(frozen=True)
class _RemoteLogits:
    """Implements `Logits`: those of `step` stay with the last stage."""

    pipeline: RayPipeline
    actor: Any
    step: Any

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        return self.pipeline.get(self.actor.draw.remote(self.step, list(draws)))

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        return self.pipeline.get(self.actor.rows.remote(self.step, indices))


def _name(stage: Sequence[RankSpec]) -> str:
    first, last, total = stage[0].place.rank, stage[-1].place.rank, stage[0].place.layout.world_size
    return f"rank {first} of {total}" if first == last else f"ranks {first} to {last} of {total}"
