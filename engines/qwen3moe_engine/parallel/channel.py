"""An array from one rank to another of the same host, through shared memory.

Owns: the protocol of one slot and two counters. Relies on the order of stores as `shared_group` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.parallel.board import Board

SLOT_BYTES = 1 << 20
_HEADER_BYTES = 64  # counters sent and received, then the array's number of bytes, rows and columns


class Channel:
    """For fp32 matrices. `memory`: shared by sender and receiver, `Channel.NUM_BYTES` zeros."""

    NUM_BYTES = _HEADER_BYTES + SLOT_BYTES

    def __init__(self, memory: Any, board: Board):
        flat: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        assert len(flat) == self.NUM_BYTES
        self._words, self._slot, self._board = flat[:_HEADER_BYTES].view(np.int64), flat[_HEADER_BYTES:], board

    def send(self, matrix: NDArray[np.float32]) -> None:
        """Returns when the last chunk is on its way."""
        matrix = np.ascontiguousarray(matrix, np.float32)
        self._wait_until_free()
        self._words[2:4] = matrix.shape
        for chunk in _chunks(matrix):
            self._wait_until_free()
            self._slot[: chunk.nbytes] = chunk
            self._words[0] += 1

    def receive(self) -> NDArray[np.float32]:
        self._wait_until_sent()
        matrix = np.empty(tuple(self._words[2:4].tolist()), np.float32)
        for chunk in _chunks(matrix):
            self._wait_until_sent()
            chunk[:] = self._slot[: chunk.nbytes]
            self._words[1] += 1
        return matrix

    def _wait_until_free(self) -> None:
        self._board.wait(lambda: bool(self._words[0] == self._words[1]))

    def _wait_until_sent(self) -> None:
        self._board.wait(lambda: bool(self._words[0] > self._words[1]))


def _chunks(matrix: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    flat = matrix.reshape(-1).view(np.uint8)
    return [flat[start : start + SLOT_BYTES] for start in range(0, flat.size, SLOT_BYTES)]
