"""Weights into device memory, streamed from safetensors. Must not know TensorRT."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.tensorrt.cuda import Stream
from qwen3moe_engine.tensorrt.double_buffer import DoubleBuffer
from qwen3moe_engine.weights import Progress, WeightPlan, convert

CHUNK_BYTES = 64 << 20  # of each of two buffers: large enough that a copy runs at the bus's rate


@dataclass(frozen=True)
class LoadReport:
    """How much came to the device, and how fast."""

    num_bytes: int
    seconds: float

    @property
    def gigabytes_per_second(self) -> float:
        return self.num_bytes / 1e9 / self.seconds


def stream_weights(
    plans: list[WeightPlan], addresses: dict[str, int], dtype: str, stream: Stream, progress: Progress
) -> LoadReport:
    """Reads every plan's tensors, converts them to `dtype` and copies them to its address.

    While one buffer is on its way to the device the other is filled from the file.
    """
    start, num_bytes = time.perf_counter(), 0
    with DoubleBuffer(stream, CHUNK_BYTES) as buffers:
        for plan in progress(plans, "loading weights"):
            num_bytes += stream_weight(plan, addresses[plan.spec.name], dtype, buffers)
        stream.synchronize()
    return LoadReport(num_bytes, time.perf_counter() - start)


def stream_weight(plan: WeightPlan, address: int, dtype: str, buffers: DoubleBuffer) -> int:
    """The same of one plan, to `address`. Returns the number of bytes."""
    target, itemsize = address, NUMPY_DTYPES[dtype].itemsize
    for piece in plan.pieces:
        rows_at_once = max(1, buffers.num_bytes // itemsize // piece.num_columns)
        for row in range(0, piece.num_rows, rows_at_once):
            part = piece.part(row, rows_at_once)
            buffer = buffers.next_free(part.size * itemsize)
            _read(part, dtype, buffer)
            buffers.send(buffer, target)
            target += buffer.nbytes
    return target - address


def _read(part: Piece, dtype: str, out: NDArray[np.uint8]) -> None:
    """Its elements in `dtype`, which fill `out`; without a copy where they are stored in it."""
    if part.tensor.dtype == dtype:
        part.read_into(out)
    else:
        out[:] = convert(part.read(), dtype, part.tensor.name).view(np.uint8)
