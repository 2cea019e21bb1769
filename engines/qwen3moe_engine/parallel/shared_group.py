"""A group of ranks of one host that reduce through shared memory.

Owns: the protocol of slots and counters. For CPU runtimes; GPUs have NCCL. Relies on other processes seeing stores in
the order they were made, as x86-64 gives it.

An array goes in chunks of a slot. For a chunk a rank writes its part into its slot, counts it, waits until all have
counted theirs, and reads all slots, in the order of ranks: so every rank gets the same bits. Each rank has two slots
used in turn, as a neighbour may still read the last chunk while this rank writes the next; it cannot be two behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.parallel.board import Board

SLOT_BYTES = 1 << 20
_COUNTER_BYTES = 64  # a cache line for each rank's counter


class SharedGroup:
    """Implements `Collective`, for arrays of any type. `memory`: shared by the group, `num_bytes(size)` zeros."""

    def __init__(self, memory: Any, rank: int, size: int, board: Board):
        flat: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        assert len(flat) == self.num_bytes(size)
        counters = flat[: size * _COUNTER_BYTES].view(np.int64)
        self._counters = counters[:: _COUNTER_BYTES // counters.itemsize]
        self._slots = flat[size * _COUNTER_BYTES :].reshape(2, size, SLOT_BYTES)
        self._rank, self.size, self._board = rank, size, board

    @staticmethod
    def num_bytes(size: int) -> int:
        return size * (_COUNTER_BYTES + 2 * SLOT_BYTES)

    def all_reduce(self, x: NDArray) -> NDArray:
        out = np.empty(x.size, x.dtype)

        def add_up(start: int, parts: list[NDArray]) -> None:
            total = out[start : start + parts[0].size]
            total[:] = parts[0]
            for part in parts[1:]:
                total += part

        self._exchange(np.ascontiguousarray(x).reshape(-1), add_up)
        return out.reshape(x.shape)

    def all_gather(self, x: NDArray) -> NDArray:
        out = np.empty((self.size, x.size), x.dtype)

        def place(start: int, parts: list[NDArray]) -> None:
            for row, part in zip(out, parts, strict=True):
                row[start : start + part.size] = part

        self._exchange(np.ascontiguousarray(x).reshape(-1), place)
        return out.reshape(self.size * x.shape[0], *x.shape[1:])

    def _exchange(self, flat: NDArray, take: Callable[[int, list[NDArray]], None]) -> None:
        """Calls `take` with the start of each chunk and every rank's part of it."""
        num_elements = SLOT_BYTES // flat.itemsize
        for start in range(0, flat.size, num_elements):
            chunk = flat[start : start + num_elements]
            number = int(self._counters[self._rank])
            slots = self._slots[number % 2][:, : chunk.nbytes].view(flat.dtype)
            slots[self._rank] = chunk
            self._counters[self._rank] = number + 1
            self._board.wait(lambda expected=number: bool((self._counters > expected).all()))  # type: ignore[misc]
            take(start, list(slots))


def check_known_sum(group: SharedGroup, rank: int) -> str | None:
    """Reduces and gathers numbers known beforehand; says what is wrong with the results, if anything is."""
    ramp, ranks = np.arange(1, 4 * 257 + 1, dtype=np.float32).reshape(4, 257), range(1, group.size + 1)
    if not np.array_equal(group.all_reduce(ramp * (rank + 1)), ramp * sum(ranks)):
        return "an all-reduce of known numbers gave another sum"
    if not np.array_equal(group.all_gather(ramp * (rank + 1)), np.concatenate([ramp * factor for factor in ranks])):
        return "an all-gather of known numbers gave others"
    return None
