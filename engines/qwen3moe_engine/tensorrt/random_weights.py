"""Pseudo-random weights, made on the device: work on a model's geometry without its checkpoint.

Owns: the checkpoint that is not there, and filling memory. A value follows from the tensor's name and the element's
place in it, so that the ranks of any layout hold parts of one model. Must not know TensorRT, nor what is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from qwen3moe_engine.checkpoint import Checkpoint, StoredTensor
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.random_model import RandomWeights, value_ranges
from qwen3moe_engine.tensorrt.cuda import Stream
from qwen3moe_engine.tensorrt.loading import LoadReport
from qwen3moe_engine.weights import WeightPlan
from qwen3moe_plugins.kernels import DTYPES, FillShape, FillTensors, KernelLibrary


def random_checkpoint(manifest: Manifest) -> Checkpoint:
    """The tensors of a published checkpoint for the weights of `manifest`, without content."""
    tensors = [
        StoredTensor(name, spec.dtype, shape, Path(), 0)
        for spec in manifest.of_kind("weight")
        for name, shape in spec.source_shapes().items()
    ]
    return Checkpoint(Path("random"), {tensor.name: tensor for tensor in tensors})


class WeightMaker:
    """Makes tensors of one model on `stream`. top_k: of its routers."""

    def __init__(self, weights: RandomWeights, top_k: int, kernels: KernelLibrary, stream: int):
        self._weights, self._top_k, self._kernels, self._stream = weights, top_k, kernels, stream

    def fill(self, piece: Piece, address: int) -> None:
        """Writes its elements, row after row, to device memory at `address`."""
        row_bytes = piece.num_bytes // piece.num_rows
        for span in value_ranges(piece.tensor, self._weights.skew, self._top_k):
            first = max(span.first, piece.rows[0])
            end = piece.rows[1] if span.end is None else min(span.end, piece.rows[1])
            if first < end:
                part = piece.part(first - piece.rows[0], end - first)
                self._fill(part, span.low, span.high, address + (first - piece.rows[0]) * row_bytes)

    def _fill(self, piece: Piece, low: float, high: float, address: int) -> None:
        tensor, first = piece.tensor, piece.rows[0] * piece.row_size + piece.columns[0]
        place = (piece.size, piece.num_columns, piece.row_size, first)
        shape = FillShape(*place, self._weights.seed_of(tensor.name), DTYPES[tensor.dtype], low, high)
        self._kernels.run("fill", shape, FillTensors(address), 0, 0, self._stream)


def fill_weights(
    plans: Sequence[WeightPlan], addresses: dict[str, int], maker: WeightMaker, stream: Stream
) -> LoadReport:
    """Makes the pieces of `plans`, of a `random_checkpoint`, at the addresses of their weights."""
    start, num_bytes = time.perf_counter(), 0
    for plan in plans:
        num_bytes += fill_weight(plan, addresses[plan.spec.name], maker)
    stream.synchronize()
    return LoadReport(num_bytes, time.perf_counter() - start)


def fill_weight(plan: WeightPlan, address: int, maker: WeightMaker) -> int:
    """The same of one plan, to `address`. Returns the number of bytes."""
    for piece in plan.pieces:
        maker.fill(piece, address)
        address += piece.num_bytes
    return plan.num_bytes_read
