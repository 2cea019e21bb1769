"""From a checkpoint's tensors to the graph's inputs.

Owns: which stored tensors make up each input, the check that every tensor is used exactly once and fits, conversion of
dtypes, and the inputs that come from no checkpoint. Must not know torch, onnx or where the inputs end up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES, Checkpoint, StoredTensor
from qwen3moe_engine.manifest import InputSpec, Manifest, Rope
from qwen3moe_plugins.errors import InputError, name_list


@dataclass(frozen=True)
class WeightPlan:
    """An input and the stored tensors whose rows, one after the other, are its content."""

    spec: InputSpec
    sources: tuple[StoredTensor, ...]


Progress = Callable[[Sequence[WeightPlan], str], Iterable[WeightPlan]]


def no_progress(items: Iterable[WeightPlan], what: str) -> Iterable[WeightPlan]:
    """A Progress that shows nothing."""
    return items


def plan_weights(specs: list[InputSpec], checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> list[WeightPlan]:
    """Assigns every tensor of the checkpoint to one of `specs`, before any is read.

    An input is either stored under its own name (packed, or fused as transformers 5 holds experts in memory) or as the
    sources its spec lists. `unused` names tensors that may be there and go nowhere. Raises InputError listing what is
    missing, left over, misshapen or of a dtype other than bf16, fp16 and fp32.
    """
    left = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in unused}
    plans, missing = [], []
    for spec in specs:
        names = [spec.name] if spec.name in left else list(spec.source_shapes())
        found = [left.pop(name) for name in names if name in left]
        missing += [name for name in names if name not in checkpoint.tensors]
        plans.append(WeightPlan(spec, tuple(found)))
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
    _check_tensors(plans, where)
    return plans


def _check_tensors(plans: list[WeightPlan], where: str) -> None:
    tensors = [tensor for plan in plans for tensor in plan.sources]
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
        for plan in plans
        for tensor, shape in zip(plan.sources, _expected_shapes(plan), strict=True)
        if tensor.shape != shape
    ]
    if misshapen:
        raise InputError(
            where,
            got=f"shapes {name_list(misshapen, limit=4)}",
            expected="shapes as config.json implies",
            remedy="check that config.json and weights belong together",
        )


def _expected_shapes(plan: WeightPlan) -> list[tuple[int, ...]]:
    if plan.sources[0].name == plan.spec.name:
        return [plan.spec.static_shape]
    shapes = plan.spec.source_shapes()
    return [shapes[tensor.name] for tensor in plan.sources]


def read_weight(plan: WeightPlan, dtype: str) -> NDArray:
    """The input's content in `dtype` (bf16, fp16 or fp32), its shape that of the spec."""
    out = np.empty(plan.spec.static_shape, NUMPY_DTYPES[dtype])
    flat, start = out.reshape(-1), 0
    for chunk in read_chunks(plan, dtype):
        flat[start : start + chunk.size] = chunk
        start += chunk.size
    assert start == flat.size, plan
    return out


def read_chunks(plan: WeightPlan, dtype: str) -> Iterator[NDArray]:
    """The input's content in order, one stored tensor at a time, flat, in `dtype`."""
    for tensor in plan.sources:
        yield convert(tensor.read().reshape(-1), dtype, tensor.name)


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


def expert_map(spec: InputSpec) -> NDArray[np.int32]:
    """Every expert in the slot of its own number: int32 [num_experts]."""
    return np.arange(spec.static_shape[0], dtype=np.int32)


def cos_sin_cache(rope: Rope, num_positions: int) -> NDArray[np.float32]:
    """The rotary table for positions 0 to num_positions - 1: fp32 [num_positions, head_dim], cosines then sines."""
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * np.asarray(rope.inv_freq, np.float32)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * np.float32(rope.attention_factor)


def plan_manifest(manifest: Manifest, checkpoint: Checkpoint) -> list[WeightPlan]:
    """`plan_weights` for the weights of an export."""
    return plan_weights(manifest.of_kind("weight"), checkpoint, manifest.unused_sources)
