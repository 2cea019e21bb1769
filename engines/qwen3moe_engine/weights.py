"""From a checkpoint's tensors to the graph's inputs.

Owns: which parts of which stored tensors make up each input, the check that every tensor is used exactly once and
fits, conversion of dtypes, and the inputs that come from no checkpoint. Must not know torch, onnx or where the inputs
end up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES, Checkpoint, StoredTensor
from qwen3moe_engine.expert_placement import Placement
from qwen3moe_engine.manifest import InputSpec, Manifest, Rope
from qwen3moe_engine.pieces import Piece, pieces_of
from qwen3moe_engine.sharding import placement_of
from qwen3moe_plugins.errors import InputError, name_list


@dataclass(frozen=True)
class WeightPlan:
    """An input and the parts of stored tensors that, one after the other, are its content. stored: those tensors."""

    spec: InputSpec
    pieces: tuple[Piece, ...]
    stored: tuple[StoredTensor, ...]

    @property
    def num_bytes_read(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)


Progress = Callable[[Sequence[WeightPlan], str], Iterable[WeightPlan]]


def no_progress(items: Iterable[WeightPlan], what: str) -> Iterable[WeightPlan]:
    """A Progress that shows nothing."""
    return items


def plan_weights(
    specs: list[InputSpec],
    checkpoint: Checkpoint,
    is_unused: Callable[[str], bool] = lambda name: False,
    group_rank: int = 0,
    group_size: int = 1,
    experts: Sequence[int] | None = None,
) -> list[WeightPlan]:
    """Assigns every tensor of the checkpoint to one of `specs`, before any is read.

    An input is either stored under its own name (packed, or fused as transformers 5 holds experts in memory) or as the
    sources its spec lists. Names that `is_unused` may be there and go nowhere. The rank reads its part of each; of
    experts those in `experts`, by default all. Raises InputError listing what is missing, left over, misshapen or of a
    dtype other than bf16, fp16 and fp32.
    """
    left = {name: tensor for name, tensor in checkpoint.tensors.items() if not is_unused(name)}
    found: list[tuple[InputSpec, list[StoredTensor]]] = []
    missing: list[str] = []
    for spec in specs:
        names = [spec.name] if spec.name in left else list(spec.source_shapes())
        missing += [name for name in names if name not in checkpoint.tensors]
        found.append((spec, [left.pop(name) for name in names if name in left]))
    where = str(checkpoint.path)
    if missing:
        raise InputError(
            where,
            got=f"no tensor {name_list(missing)}",
            expected="every weight of the model",
            remedy="check that config.json and weights belong together",
        )
    if left:
        raise InputError(
            where,
            got=f"tensors that nothing takes: {name_list(left)}",
            expected="only weights of the model",
            remedy="check that config.json and weights belong together",
        )
    _check_tensors(found, where)
    return [
        WeightPlan(spec, pieces_of(spec, stored, group_rank, group_size, experts or range(spec.repeat)), tuple(stored))
        for spec, stored in found
    ]


def _check_tensors(found: list[tuple[InputSpec, list[StoredTensor]]], where: str) -> None:
    tensors = [tensor for _, stored in found for tensor in stored]
    foreign = [f"{tensor.name} {tensor.dtype}" for tensor in tensors if tensor.dtype not in ("bf16", "fp16", "fp32")]
    if foreign:
        raise InputError(
            where,
            got=f"tensors in another dtype: {name_list(foreign)}",
            expected="BF16, F16 or F32",
            remedy="use the unquantised checkpoint",
        )
    misshapen = [
        f"{tensor.name} {list(tensor.shape)} instead of {list(shape)}"
        for spec, stored in found
        for tensor, shape in zip(stored, _expected_shapes(spec, stored), strict=True)
        if tensor.shape != shape
    ]
    if misshapen:
        raise InputError(
            where,
            got=f"shapes {name_list(misshapen, limit=4)}",
            expected="shapes as config.json implies",
            remedy="check that config.json and weights belong together",
        )


def _expected_shapes(spec: InputSpec, stored: list[StoredTensor]) -> list[tuple[int, ...]]:
    return [spec.whole_shape] if stored[0].name == spec.name else list(spec.source_shapes().values())


def read_weight(plan: WeightPlan, dtype: str) -> NDArray:
    """The input's content in `dtype` (bf16, fp16 or fp32), its shape that of the spec."""
    out = np.empty(plan.spec.static_shape, NUMPY_DTYPES[dtype])
    flat, start = out.reshape(-1), 0
    for chunk in read_chunks(plan, dtype):
        flat[start : start + chunk.size] = chunk
        start += chunk.size
    assert start == flat.size, plan
    return out


def plan_expert(plan: WeightPlan, expert: int, group_rank: int, group_size: int) -> WeightPlan:
    """Of one expert, whether the input has it or not: what a slot holds."""
    spec = replace(plan.spec, shape=plan.spec.static_shape[1:])
    return WeightPlan(spec, pieces_of(plan.spec, list(plan.stored), group_rank, group_size, [expert]), plan.stored)


def read_chunks(plan: WeightPlan, dtype: str) -> Iterator[NDArray]:
    """The input's content in order, one piece at a time, flat, in `dtype`."""
    for piece in plan.pieces:
        yield convert(piece.read(), dtype, piece.tensor.name)


def convert(array: NDArray, dtype: str, name: str) -> NDArray:
    """`array` rounded to `dtype`. Raises InputError if a finite value does not fit (bf16 reaches 3e38, fp16 65504)."""
    target = NUMPY_DTYPES[dtype]
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(target)
    if dtype == "fp16" and not np.array_equal(np.isfinite(converted), np.isfinite(array)):
        largest = float(np.abs(array.astype(np.float32)).max())
        raise InputError(
            name,
            got=f"values up to {largest:.4g}",
            expected="at most 65504, the range of fp16",
            remedy="export with --dtype bf16",
        )
    return converted


def num_bytes_of(spec: InputSpec) -> int:
    """Of an input without dynamic dimensions."""
    return math.prod(spec.static_shape) * NUMPY_DTYPES[spec.dtype].itemsize


def vocab_offset(manifest: Manifest, group_rank: int) -> NDArray[np.int32]:
    """The first token of which the rank holds the embedding: int32 [1]."""
    return np.array([manifest.dims.vocab_size // manifest.part.layout.group_size * group_rank], np.int32)


def cos_sin_cache(rope: Rope, num_positions: int) -> NDArray[np.float32]:
    """The rotary table for positions 0 to num_positions - 1: fp32 [num_positions, head_dim], cosines then sines."""
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * np.asarray(rope.inv_freq, np.float32)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * np.float32(rope.attention_factor)


def rank_constants(
    manifest: Manifest, group_rank: int = 0, placement: Placement | None = None
) -> dict[str, NDArray[np.int32]]:
    """The inputs that differ by rank, or by placement of the experts, and come from no checkpoint, by name."""
    layout = manifest.part.layout
    placement = placement or placement_of(manifest.dims.num_experts, layout)
    expert_rank = layout.expert_rank_of(group_rank)
    make_map = placement.balanced_map if layout.redundant_experts else placement.expert_map
    maps = {spec.name: make_map(expert_rank) for spec in manifest.of_kind("expert_map")}
    return maps | {spec.name: vocab_offset(manifest, group_rank) for spec in manifest.of_kind("vocab_offset")}


def plan_manifest(manifest: Manifest, checkpoint: Checkpoint, group_rank: int = 0) -> list[WeightPlan]:
    """`plan_weights` for the weights of an export, as a rank of its group holds them."""
    others = _layers_elsewhere(manifest)

    def is_unused(name: str) -> bool:
        return name in manifest.unused_sources or name.startswith(others)

    specs, layout = manifest.of_kind("weight"), manifest.part.layout
    experts = placement_of(manifest.dims.num_experts, layout).by_rank[layout.expert_rank_of(group_rank)]
    return plan_weights(specs, checkpoint, is_unused, group_rank, layout.group_size, experts)


def _layers_elsewhere(manifest: Manifest) -> tuple[str, ...]:
    """Prefixes of the layers of other stages."""
    num_layers = manifest.dims.num_layers
    held = manifest.part.layers(num_layers)
    return tuple(f"model.layers.{layer_idx}." for layer_idx in range(num_layers) if layer_idx not in held)
