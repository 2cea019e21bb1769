"""A step, laid down once in shared memory for every rank to read.

Owns: the form of the arrays there, and that two steps have room. Who may write when is the caller's to know: rank 0
writes a step when it has what the step before the last gave, which no rank's share is missing from.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.draw_columns import PARAMETERS, DrawColumns
from qwen3moe_plugins.errors import InputError

SLOT_BYTES = 16 << 20  # block tables of 256 sequences of half a million tokens, in blocks of 32
NUM_SLOTS = 2
MAILBOX_BYTES = NUM_SLOTS * SLOT_BYTES
_BATCH = tuple(field.name for field in fields(Batch))
_NAMES = (*_BATCH, *PARAMETERS)
_DTYPES = tuple(map(np.dtype, (np.int32, np.float32, np.uint64)))
_HEADER_WORDS = 4  # of an array: rows, columns (-1 of a vector), number of its dtype, start in bytes
_ALIGNMENT = 64


class Mailbox:
    """`memory`: shared, MAILBOX_BYTES."""

    def __init__(self, memory: Any):
        self._slots: NDArray[np.uint8] = np.frombuffer(memory, np.uint8).reshape(NUM_SLOTS, SLOT_BYTES)

    def write(self, step: int, batch: Batch, draws: DrawColumns) -> None:
        """Over the step before the last. Raises InputError for one that has no room."""
        slot, header = self._slot(step)
        given = {name: getattr(batch, name) for name in _BATCH} | draws
        given["carried"] = np.array(batch.carried, np.int32).reshape(-1, 2)
        start = _aligned(header.nbytes)
        for row, name in zip(header, _NAMES, strict=True):
            array = np.ascontiguousarray(given[name])
            end = start + array.nbytes
            if end > SLOT_BYTES:
                got, expected = f"a step of {end} bytes", f"at most {SLOT_BYTES}"
                raise InputError("step", got=got, expected=expected, remedy="lower the step's tokens or sequences")
            columns = array.shape[1] if array.ndim == 2 else -1
            row[:] = (len(array), columns, _DTYPES.index(array.dtype), start)
            slot[start:end] = array.reshape(-1).view(np.uint8)
            start = _aligned(end)

    def read(self, step: int) -> tuple[Batch, DrawColumns]:
        """A copy: the memory is written again while the step still runs."""
        slot, header = self._slot(step)
        arrays: dict[str, Any] = {name: _array(slot, row.tolist()) for row, name in zip(header, _NAMES, strict=True)}
        draws = {name: arrays.pop(name) for name in PARAMETERS}
        arrays["carried"] = [(place, row) for place, row in arrays["carried"].tolist()]
        return Batch(**arrays), draws

    def _slot(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Its bytes, and the part of them that tells where arrays lie."""
        slot = self._slots[step % NUM_SLOTS]
        header = slot[: len(_NAMES) * _HEADER_WORDS * 8].view(np.int64)
        return slot, header.reshape(len(_NAMES), _HEADER_WORDS)


def _array(slot: NDArray[np.uint8], header: list[int]) -> NDArray:
    rows, columns, dtype_index, start = header
    shape, dtype = (rows,) if columns < 0 else (rows, columns), _DTYPES[dtype_index]
    return slot[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape).copy()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
