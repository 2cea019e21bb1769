"""Pseudo-random weights, made on the device: work on a model's geometry without its checkpoint.

Owns: the checkpoint that is not there, and the values of its tensors. A value follows from the tensor's name and the
element's place in it, so that the ranks of any layout hold parts of one model. Must not know TensorRT.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from qwen3moe_engine.checkpoint import Checkpoint, StoredTensor
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.tensorrt.cuda import Stream
from qwen3moe_engine.tensorrt.loading import LoadReport
from qwen3moe_engine.weights import WeightPlan
from qwen3moe_plugins.kernels import BF16, FP16, FillShape, FillTensors, KernelLibrary

DTYPES = {"bf16": BF16, "fp16": FP16}


def random_checkpoint(manifest: Manifest) -> Checkpoint:
    """The tensors of a published checkpoint for the weights of `manifest`, without content."""
    tensors = [
        StoredTensor(name, spec.dtype, shape, Path(), 0)
        for spec in manifest.of_kind("weight")
        for name, shape in spec.source_shapes().items()
    ]
    return Checkpoint(Path("random"), {tensor.name: tensor for tensor in tensors})


def fill_weights(
    plans: Sequence[WeightPlan], addresses: dict[str, int], seed: int, kernels: KernelLibrary, stream: Stream
) -> LoadReport:
    """Makes the pieces of `plans`, of a `random_checkpoint`, at the addresses of their weights."""
    start, num_bytes = time.perf_counter(), 0
    for plan in plans:
        num_bytes += fill_weight(plan, addresses[plan.spec.name], seed, kernels, stream)
    stream.synchronize()
    return LoadReport(num_bytes, time.perf_counter() - start)


def fill_weight(plan: WeightPlan, address: int, seed: int, kernels: KernelLibrary, stream: Stream) -> int:
    """The same of one plan, to `address`. Returns the number of bytes."""
    for piece in plan.pieces:
        fill_piece(piece, address, seed, kernels, stream.handle)
        address += piece.num_bytes
    return plan.num_bytes_read


def skew_routers(
    plans: Sequence[WeightPlan],
    addresses: dict[str, int],
    seed: int,
    skew: float,
    kernels: KernelLibrary,
    stream: Stream,
) -> None:
    """Makes the routers' rows of even experts `skew` times as long: most tokens then choose these. Work that is uneven,
    to measure balancing."""
    for plan in plans:
        if plan.spec.name.endswith("mlp.gate.weight"):
            (piece,) = plan.pieces
            for row in range(0, piece.num_rows, 2):
                part = piece.part(row, 1)
                address = addresses[plan.spec.name] + row * part.num_bytes
                fill_piece(part, address, seed, kernels, stream.handle, skew)
    stream.synchronize()


def fill_piece(piece: Piece, address: int, seed: int, kernels: KernelLibrary, stream: int, factor: float = 1.0) -> None:
    """`factor`: on what the tensor has by its name."""
    tensor, first = piece.tensor, piece.rows[0] * piece.row_size + piece.columns[0]
    place = (piece.size, piece.num_columns, piece.row_size, first)
    low, high = random_range(tensor)
    shape = FillShape(*place, random_seed(tensor.name, seed), DTYPES[tensor.dtype], factor * low, factor * high)
    kernels.run("fill", shape, FillTensors(address), 0, 0, stream)


def random_range(tensor: StoredTensor) -> tuple[float, float]:
    """Lowest and highest value: norms around 1, embeddings uniform with variance 1, other matrices 1 / columns."""
    if "norm" in tensor.name:
        return 0.9, 1.1
    # What attention adds is a mean over a sequence's tokens: next to small embeddings it would make them all alike, and
    # the router send them to the same few experts. A decode step's, of many sequences, route as evenly as by chance
    # (benchmarks/random_routing.py).
    variance = 1.0 if "embed_tokens" in tensor.name else 1.0 / tensor.shape[-1]
    half_width = math.sqrt(3.0 * variance) if len(tensor.shape) > 1 else 0.1
    return -half_width, half_width


def random_seed(name: str, seed: int) -> int:
    """Of one tensor: a different stream for each name."""
    return (seed << 32) + zlib.crc32(name.encode())
