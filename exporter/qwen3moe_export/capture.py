"""torch.export of the program: no weight is needed, as every one is an argument of known shape.

Owns: the order, names and dynamic dimensions of the graph's inputs. Must not know ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen3moe_engine.manifest import InputSpec, OutputSpec
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import expert_map_name, kv_cache_name, weight_specs
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


def interface_of(config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool) -> Interface:
    """`dtype`: bf16, fp16 or fp32, of weights, activations and KV cache."""
    sparse_layers = [layer_idx for layer_idx in range(config.num_layers) if config.is_sparse(layer_idx)]
    kv_shape = ("num_blocks", 2, config.num_kv_heads, "block_size", config.head_dim)
    tokens = (
        InputSpec("inputs_embeds", "batch", dtype, ("num_tokens", config.hidden_size))
        if takes_embeddings
        else InputSpec("input_ids", "batch", "int32", ("num_tokens",))
    )
    inputs = (
        *weight_specs(config, dtype, takes_embeddings),
        *(InputSpec(expert_map_name(i), "expert_map", "int32", (config.num_experts,)) for i in sparse_layers),
        InputSpec("cos_sin_cache", "rope", "fp32", ("num_positions", config.head_dim)),
        *(InputSpec(kv_cache_name(i), "kv_cache", dtype, kv_shape) for i in range(config.num_layers)),
        tokens,
        InputSpec("positions", "batch", "int32", ("num_tokens",)),
        InputSpec("block_table", "batch", "int32", ("num_seqs", "max_blocks")),
        InputSpec("cu_seqlens", "batch", "int32", ("num_seqs_plus_1",)),
        InputSpec("context_lens", "batch", "int32", ("num_seqs",)),
        InputSpec("logits_indices", "batch", "int32", ("num_logits",)),
    )
    outputs = (
        OutputSpec("logits", "fp32", ("num_logits", config.vocab_size)),
        *(OutputSpec(f"{kv_cache_name(i)}_out", dtype, kv_shape, kv_cache_name(i)) for i in range(config.num_layers)),
    )
    return Interface(inputs, outputs)


def capture(config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool = False) -> Captured:
    """Traces the program with fake tensors: memory does not depend on the size of the weights."""
    interface = interface_of(config, dtype, takes_embeddings)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        example = {spec.name: _example(spec) for spec in interface.inputs}
        arguments = arrange(config, example)
        shapes = arrange(config, _dynamic_dims(interface))
        program = torch.export.export(Program(config), (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
    return Captured(program, interface, shapes)


def arrange(config: Qwen3MoeConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Values by input name as the keyword arguments of `Program.forward`, in the interface's order."""
    kv_names = [kv_cache_name(layer_idx) for layer_idx in range(config.num_layers)]
    sparse_layers = [layer_idx for layer_idx in range(config.num_layers) if config.is_sparse(layer_idx)]
    weight_names = [
        name for name in values if name.startswith(("model.", "lm_head.")) and not name.endswith(".expert_map")
    ]
    batch = {
        name: values[name] for name in ("positions", "block_table", "cu_seqlens", "context_lens", "logits_indices")
    }
    return {
        "weights": {name: values[name] for name in weight_names},
        "expert_maps": {layer_idx: values[expert_map_name(layer_idx)] for layer_idx in sparse_layers},
        "cos_sin_cache": values["cos_sin_cache"],
        "kv_caches": [values[name] for name in kv_names],
        "tokens": values["inputs_embeds"] if "inputs_embeds" in values else values["input_ids"],
        **batch,
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
