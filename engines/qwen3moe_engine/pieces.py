"""The parts of stored tensors that make up a rank's weight.

Owns: where they lie in a checkpoint, however it is laid out (a tensor for each expert, fused, or packed), and reading
them. Must not know which parts a rank has: `InputSpec` says so.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES, StoredTensor
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.sharding import ShardSpec


@dataclass(frozen=True)
class Piece:
    """Rows and columns, each from and to, of a stored tensor seen as rows of `row_size` elements."""

    tensor: StoredTensor
    row_size: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def num_rows(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def num_columns(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.num_rows * self.num_columns

    @property
    def num_bytes(self) -> int:
        """As stored; no others are read."""
        return self.size * NUMPY_DTYPES[self.tensor.dtype].itemsize

    def part(self, first: int, num_rows: int) -> Piece:
        """So many rows of it, from its row `first` on."""
        start = self.rows[0] + first
        return replace(self, rows=(start, min(start + num_rows, self.rows[1])))

    def read(self) -> NDArray:
        """Its elements row after row, flat, in the stored dtype."""
        out = np.empty(self.size, NUMPY_DTYPES[self.tensor.dtype])
        self.read_into(out.view(np.uint8))
        return out

    def read_into(self, out: NDArray[np.uint8]) -> None:
        if self.num_columns == self.row_size:
            self.tensor.read_part_into(self.rows[0] * self.row_size, out)
        else:
            self._read_columns_into(out)

    def _read_columns_into(self, out: NDArray[np.uint8]) -> None:
        """Through a memory map that lasts no longer: a column shard of an expert has millions of short rows, and a call
        of the system for each takes minutes. What a map makes resident goes with it."""
        itemsize = NUMPY_DTYPES[self.tensor.dtype].itemsize
        start = self.tensor.offset + self.rows[0] * self.row_size * itemsize
        aligned = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = start - aligned + self.num_rows * self.row_size * itemsize
        with (
            self.tensor.file.open("rb") as file,
            mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=aligned) as mapped,
        ):
            stored = np.frombuffer(mapped, np.uint8, offset=start - aligned)
            rows = stored.reshape(self.num_rows, self.row_size * itemsize)
            first, end = (column * itemsize for column in self.columns)
            out.reshape(self.num_rows, end - first)[:] = rows[:, first:end]
            del stored, rows  # a map that arrays point to cannot be closed


def pieces_of(
    spec: InputSpec, stored: list[StoredTensor], group_rank: int, group_size: int, experts: Sequence[int]
) -> tuple[Piece, ...]:
    """What a rank reads for the weight `spec`, in the order of its bytes.

    `stored` is the whole of it, as one tensor or as the sources of the spec in their order. experts: those the rank
    holds, in the order of their slots, of a weight that has a source for each.
    """
    is_packed = len(stored) == 1 and stored[0].name == spec.name
    pieces: list[Piece] = []
    shards = spec.shards or (ShardSpec(),) * len(spec.sources)
    for expert in experts if spec.has_experts else (0,):
        offset = expert * sum(spec.whole_rows)
        for number, (rows, shard) in enumerate(zip(spec.whole_rows, shards, strict=True)):
            tensor = stored[0] if is_packed else stored[expert * len(shards) + number]
            part, start = shard.part_of(group_rank, group_size), offset if is_packed else 0
            first, end = shard.bounds(rows, "rows", part)
            columns = shard.bounds(spec.whole_columns, "columns", part)
            _append(pieces, Piece(tensor, spec.whole_columns, (start + first, start + end), columns))
            offset += rows
    return tuple(pieces)


def _append(pieces: list[Piece], piece: Piece) -> None:
    """To the last one, where it goes on in the same tensor: fewer and longer reads."""
    last = pieces[-1] if pieces else None
    if last and last.tensor is piece.tensor and last.columns == piece.columns and last.rows[1] == piece.rows[0]:
        pieces[-1] = replace(last, rows=(last.rows[0], piece.rows[1]))
    else:
        pieces.append(piece)
