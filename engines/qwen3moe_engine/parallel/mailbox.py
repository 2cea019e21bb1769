"""A step's batch, laid down once in shared memory for every rank to read.

Owns: the form of the arrays there. Who may write when is the caller's to know: rank 0 writes a step when it has the
logits of the last one, which no rank's share is missing from.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_plugins.errors import InputError

MAILBOX_BYTES = 16 << 20  # block tables of 256 sequences of half a million tokens, in blocks of 32
_FIELDS = tuple(field.name for field in fields(Batch) if field.name != "carried")  # ranks run one step at a time
_HEADER_WORDS = 4  # of an array: rows, columns (-1 of a vector), whether it is fp32, its start in bytes
_ALIGNMENT = 64


class Mailbox:
    """`memory`: shared, MAILBOX_BYTES."""

    def __init__(self, memory: Any):
        self._bytes: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        header_bytes = len(_FIELDS) * _HEADER_WORDS * 8
        self._header = self._bytes[:header_bytes].view(np.int64).reshape(len(_FIELDS), _HEADER_WORDS)

    def write(self, batch: Batch) -> None:
        start = -(-self._header.nbytes // _ALIGNMENT) * _ALIGNMENT
        for row, name in zip(self._header, _FIELDS, strict=True):
            array = np.ascontiguousarray(getattr(batch, name))
            end = start + array.nbytes
            if end > len(self._bytes):
                got, expected = f"a step of {end} bytes", f"at most {len(self._bytes)}"
                raise InputError("step", got=got, expected=expected, remedy="lower the step's tokens or sequences")
            columns = array.shape[1] if array.ndim == 2 else -1
            row[:] = (len(array), columns, array.dtype == np.float32, start)
            self._bytes[start:end] = array.reshape(-1).view(np.uint8)
            start = -(-end // _ALIGNMENT) * _ALIGNMENT

    def read(self) -> Batch:
        """A copy: the memory is written again while the step still runs."""
        arrays: dict[str, Any] = {
            name: self._array(row.tolist()) for row, name in zip(self._header, _FIELDS, strict=True)
        }
        return Batch(**arrays)

    def _array(self, header: list[int]) -> NDArray:
        rows, columns, is_float, start = header
        shape = (rows,) if columns < 0 else (rows, columns)
        dtype = np.dtype(np.float32 if is_float else np.int32)
        return self._bytes[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape).copy()
