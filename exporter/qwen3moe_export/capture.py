"""torch.export of the program: no weight is needed, as every one is an argument of known shape.

Owns: the order, names and dynamic dimensions of the graph's inputs. Must not know ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen3moe_engine.expert_placement import MAP_ROWS
from qwen3moe_engine.layout import WHOLE, Part
from qwen3moe_engine.manifest import KINDS, InputSpec, Manifest, OutputSpec
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import (
    expert_map_name,
    kv_cache_name,
    kv_heads_held,
    layer_of,
    load_name,
    weight_specs,
)
from qwen3moe_export.program import Program

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int32": torch.int32,
}

# Sizes of dynamic dimensions in the example that is traced: above 1 and pairwise different, as torch.export takes 0 and
# 1 for constants and equal sizes for one dimension.
_EXAMPLE_SIZES = {
    "num_tokens": 23, "num_seqs": 3, "num_seqs_plus_1": 4, "max_blocks": 5, "num_blocks": 17,
    "block_size": 16, "num_positions": 64, "num_logits": 7,
}  # fmt: skip


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of the graph, in order."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]


@dataclass(frozen=True)
class Captured:
    """An exported program, its interface, and the dynamic dimensions it was traced with (by argument)."""

    program: torch.export.ExportedProgram
    interface: Interface
    dynamic_shapes: dict[str, Any]


def interface_of(config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool, part: Part = WHOLE) -> Interface:
    """`dtype`: bf16, fp16 or fp32, of weights, activations and KV cache."""
    layers, redundant = part.layers(config.num_layers), part.layout.redundant_experts
    sparse = [i for i in layers if config.is_sparse(i)]
    balanced, map_rows = (sparse, (MAP_ROWS,)) if redundant else ([], ())
    kv_shape = ("num_blocks", 2, kv_heads_held(config, part), "block_size", config.head_dim)
    hidden_shape = ("num_tokens", config.hidden_size)
    inputs = (
        *weight_specs(config, dtype, takes_embeddings, part),
        *(InputSpec(expert_map_name(i), "expert_map", "int32", (*map_rows, config.num_experts)) for i in sparse),
        *(InputSpec(load_name(i), "load", "int32", (config.num_experts,)) for i in balanced),
        InputSpec("cos_sin_cache", "rope", "fp32", ("num_positions", config.head_dim)),
        *(InputSpec(kv_cache_name(i), "kv_cache", dtype, kv_shape) for i in layers),
        *_step_inputs(part, dtype, hidden_shape, takes_embeddings),
    )
    outputs = (
        OutputSpec("logits", "fp32", ("num_logits", config.vocab_size))
        if part.is_last
        else OutputSpec("hidden_states_out", dtype, hidden_shape),
        *(OutputSpec(f"{kv_cache_name(i)}_out", dtype, kv_shape, kv_cache_name(i)) for i in layers),
        *(OutputSpec(f"{load_name(i)}_out", "int32", (config.num_experts,), load_name(i)) for i in balanced),
    )
    return Interface(inputs, outputs)


def _step_inputs(
    part: Part, dtype: str, hidden_shape: tuple[str | int, ...], takes_embeddings: bool
) -> Iterator[InputSpec]:
    """What changes from step to step, and the rank's place in the vocabulary."""
    if not part.is_first:
        yield InputSpec("hidden_states", "hidden_states", dtype, hidden_shape)
    elif takes_embeddings:
        yield InputSpec("inputs_embeds", "batch", dtype, hidden_shape)
    else:
        if part.layout.group_size > 1:
            yield InputSpec("vocab_offset", "vocab_offset", "int32", (1,))
        yield InputSpec("input_ids", "batch", "int32", ("num_tokens",))
    yield InputSpec("positions", "batch", "int32", ("num_tokens",))
    yield InputSpec("block_table", "batch", "int32", ("num_seqs", "max_blocks"))
    yield InputSpec("cu_seqlens", "batch", "int32", ("num_seqs_plus_1",))
    yield InputSpec("context_lens", "batch", "int32", ("num_seqs",))
    if part.is_last:
        yield InputSpec("logits_indices", "batch", "int32", ("num_logits",))


def capture(config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool = False, part: Part = WHOLE) -> Captured:
    """Traces the program with fake tensors: memory does not depend on the size of the weights."""
    interface = interface_of(config, dtype, takes_embeddings, part)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        arguments = arrange(interface, {spec.name: _example(spec) for spec in interface.inputs})
        shapes = arrange(interface, _dynamic_dims(interface))
        program = torch.export.export(Program(config, part), (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
    return Captured(program, interface, shapes)


def arrange(interface: Interface | Manifest, values: dict[str, Any]) -> dict[str, Any]:
    """Values by input name as the keyword arguments of `Program.forward`, in the interface's order."""
    by_kind: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for spec in interface.inputs:
        by_kind[spec.kind][spec.name] = values[spec.name]
    return {
        "weights": by_kind["weight"],
        "expert_maps": {layer_of(name): value for name, value in by_kind["expert_map"].items()},
        "loads": {layer_of(name): value for name, value in by_kind["load"].items()},
        "cos_sin_cache": values["cos_sin_cache"],
        "kv_caches": {layer_of(name): value for name, value in by_kind["kv_cache"].items()},
        "step": by_kind["hidden_states"] | by_kind["vocab_offset"] | by_kind["batch"],
    }


def _example(spec: InputSpec) -> Tensor:
    shape = [_EXAMPLE_SIZES[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype])


def _dynamic_dims(interface: Interface) -> dict[str, dict[int, Any]]:
    dims = {name: torch.export.Dim(name, min=1 if name != "num_seqs_plus_1" else 2) for name in _EXAMPLE_SIZES}
    return {
        spec.name: {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in interface.inputs
    }
