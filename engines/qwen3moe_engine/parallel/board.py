"""What every rank of a run is doing, in memory that all of its processes share.

Owns: each rank's state, when it last made progress and when its process last ran, and the flag that ends the run. Must
not know processes, tensors or why something failed.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class State(enum.IntEnum):
    """STARTING: loading and checking. AWAY: rank 0 between steps, in its caller's hands. IDLE: awaiting a step.
    RUNNING: computing. WAITING: for another rank."""

    STARTING = 0
    AWAY = 1
    IDLE = 2
    RUNNING = 3
    WAITING = 4


class GroupEndedError(RuntimeError):
    """Another rank failed, or the run was closed, while this one waited for it."""


@dataclass(frozen=True)
class Patience:
    """Seconds without progress after which a rank counts as hung: `start` while it loads, `step` afterwards. Progress
    within a step is a collective on a CPU, so that `step` must exceed what lies between two, or a stage without any."""

    start: float = 120.0
    step: float = 8.0

    def of(self, state: State) -> float:
        return self.start if state is State.STARTING else self.step


DEFAULT_PATIENCE = Patience()
STOPPED_SECONDS = 2.0  # a process that has not run for so long was stopped: its threads look five times a second
_WORDS = 4  # of a rank: state, nanoseconds of CLOCK_MONOTONIC at its last progress, step, the same of its last beat


class Board:
    """`memory`: shared, `Board.num_words` zeros. `rank`: whose entries this process writes. Ranks are counted on this
    host; first_rank and num_ranks say which these are of how many, for `name`."""

    def __init__(self, memory: Any, world_size: int, rank: int, first_rank: int = 0, num_ranks: int | None = None):
        self._words: NDArray[np.int64] = np.frombuffer(memory, np.int64)
        assert len(self._words) == self.num_words(world_size)
        self._ranks = self._words[1:].reshape(world_size, _WORDS)
        self.rank, self.world_size = rank, world_size
        self._first_rank, self._num_ranks = first_rank, num_ranks or world_size

    @staticmethod
    def num_words(world_size: int) -> int:
        return 1 + world_size * _WORDS

    def name(self, rank: int) -> str:
        return f"rank {self._first_rank + rank} of {self._num_ranks}"

    def open(self) -> None:
        """From now on every rank is expected to show signs of life."""
        self._ranks[:, [1, 3]] = time.monotonic_ns()

    def beat(self) -> None:
        """Notes that this rank's process runs, whatever its main thread does."""
        self._ranks[self.rank, 3] = time.monotonic_ns()

    def seconds_since_beat(self, rank: int) -> float:
        return (time.monotonic_ns() - int(self._ranks[rank, 3])) / 1e9

    def enter(self, state: State, step: int | None = None) -> None:
        """Notes that this rank made progress, and what it does now."""
        self._ranks[self.rank, 1] = time.monotonic_ns()
        self._ranks[self.rank, 0] = state
        if step is not None:
            self._ranks[self.rank, 2] = step

    def state_of(self, rank: int) -> State:
        return State(int(self._ranks[rank, 0]))

    def step_of(self, rank: int) -> int:
        """The step the rank is in, or was in last; 0 before the first."""
        return int(self._ranks[rank, 2])

    def end(self) -> None:
        """Everyone who waits, or will, raises GroupEndedError."""
        self._words[0] = 1

    @property
    def has_ended(self) -> bool:
        return bool(self._words[0])

    def hung(self, patience: Patience) -> int | None:
        """The rank that holds the others up, once one is silent for too long and does not say it waits for another, or
        its process does not run. On GPUs ranks wait for each other unnoted, so the latter is blamed before the former.
        """
        ranks, limits = range(self.world_size), [patience.of(self.state_of(rank)) for rank in range(self.world_size)]
        beats = [self.seconds_since_beat(rank) for rank in ranks]
        silences = [self._silence(rank) for rank in ranks]
        if not any(max(pair) > limit for *pair, limit in zip(beats, silences, limits, strict=True)):
            return None
        blamed = beats if max(beats) > STOPPED_SECONDS else silences
        return blamed.index(max(blamed))

    def _silence(self, rank: int) -> float:
        """Seconds without progress; 0 where nobody expects any."""
        is_watched = self.state_of(rank) in (State.STARTING, State.IDLE, State.RUNNING)
        return (time.monotonic_ns() - int(self._ranks[rank, 1])) / 1e9 if is_watched else 0.0

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Until `is_over`. Raises GroupEndedError."""
        before, pauses = self.state_of(self.rank), 0
        if is_over():
            return
        self.enter(State.WAITING)
        while not is_over():
            if self.has_ended:
                raise GroupEndedError("the group has ended")
            _pause(pauses)
            pauses += 1
        self.enter(before)


def _pause(count: int) -> None:
    """First the processor to whoever is awaited, then longer and longer: as many ranks as cores must not spin."""
    if count < 20:
        os.sched_yield()
    else:
        time.sleep(min(1e-3, 2e-5 * (count - 19)))
