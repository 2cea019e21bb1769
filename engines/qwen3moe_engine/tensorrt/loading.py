"""Weights into device memory: streamed from safetensors, or made there.

Owns: the pinned double buffer and the filling with pseudo-random values. Must not know TensorRT.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.tensorrt.cuda import PinnedBuffer, Stream, wait
from qwen3moe_engine.weights import Progress, WeightPlan, convert, num_bytes_of
from qwen3moe_plugins.kernels import BF16, FP16, FillShape, FillTensors, KernelLibrary

EMBEDDING = "embed_tokens"  # part of the name
CHUNK_BYTES = 64 << 20  # of each of two buffers: large enough that a copy runs at the bus's rate


@dataclass(frozen=True)
class LoadReport:
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
    start, num_bytes, itemsize = time.perf_counter(), 0, NUMPY_DTYPES[dtype].itemsize
    with _DoubleBuffer(stream) as buffers:
        for plan in progress(plans, "loading weights"):
            target = addresses[plan.spec.name]
            for piece in plan.pieces:
                rows_at_once = max(1, CHUNK_BYTES // itemsize // piece.num_columns)
                for row in range(0, piece.num_rows, rows_at_once):
                    part = piece.part(row, rows_at_once)
                    buffer = buffers.next_free(part.size * itemsize)
                    _read(part, dtype, buffer)
                    buffers.send(buffer, target)
                    target += buffer.nbytes
                    num_bytes += buffer.nbytes
        stream.synchronize()
    return LoadReport(num_bytes, time.perf_counter() - start)


def _read(part: Piece, dtype: str, out: NDArray[np.uint8]) -> None:
    """Its elements in `dtype`, which fill `out`; without a copy where they are stored in it."""
    if part.tensor.dtype == dtype:
        part.read_into(out)
    else:
        out[:] = convert(part.read(), dtype, part.tensor.name).view(np.uint8)


class _DoubleBuffer:
    """Two pinned buffers, used in turn."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._buffers = [PinnedBuffer(CHUNK_BYTES) for _ in range(2)]
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def __enter__(self) -> _DoubleBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.synchronize()
        for buffer in self._buffers:
            buffer.close()

    def next_free(self, num_bytes: int) -> NDArray[np.uint8]:
        """A part of the buffer whose last content has arrived, or will have when this returns."""
        if self._sent[self._turn] is not None:
            wait(self._sent[self._turn])
        return self._buffers[self._turn].bytes[:num_bytes]

    def send(self, content: NDArray[np.uint8], target: int) -> None:
        """Copies what `next_free` gave, now filled, to device address `target`."""
        self._stream.to_device(target, self._buffers[self._turn].address, content.nbytes)
        self._sent[self._turn] = self._stream.record()
        self._turn = 1 - self._turn


def random_weights(
    specs: list[InputSpec], addresses: dict[str, int], seed: int, kernels: KernelLibrary, stream: Stream
) -> LoadReport:
    """Fills every weight on the device: norms around 1, embeddings uniform with variance 1, and other matrices with
    variance 1 / columns."""
    start = time.perf_counter()
    for spec in specs:
        low, high = random_range(spec)
        dtype = {"bf16": BF16, "fp16": FP16}[spec.dtype]
        shape = FillShape(math.prod(spec.static_shape), random_seed(spec.name, seed), dtype, low, high)
        kernels.run("fill", shape, FillTensors(addresses[spec.name]), 0, 0, stream.handle)
    stream.synchronize()
    return LoadReport(sum(num_bytes_of(spec) for spec in specs), time.perf_counter() - start)


def random_range(spec: InputSpec) -> tuple[float, float]:
    """Lowest and highest value of a random weight."""
    if "norm" in spec.name:
        return 0.9, 1.1
    # What attention adds is a mean over all tokens: next to small embeddings it would make them all alike, and the
    # router would send them to the same few experts (14 of 128 for 8 tokens, where uniform routing takes 52).
    variance = 1.0 if EMBEDDING in spec.name else 1.0 / spec.static_shape[-1]
    half_width = math.sqrt(3.0 * variance) if len(spec.shape) > 1 else 0.1
    return -half_width, half_width


def random_seed(name: str, seed: int) -> int:
    """Of one weight: a different stream for each name."""
    return (seed << 32) + zlib.crc32(name.encode())
