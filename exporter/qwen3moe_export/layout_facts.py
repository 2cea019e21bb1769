"""What a layout costs, from a config alone: memory of each rank, room for keys and values, and traffic.

Owns: the arithmetic. Must not know torch. Bytes are those of the config's dtype; logits are fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.layout import Layout, Part
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.sharding import check_layout
from qwen3moe_engine.weights import num_bytes_of
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import kv_heads_held, split_sizes, weight_specs

MEMORY_FRACTION = 0.9  # of a GPU, as the TensorRT executor uses it by default
_KINDS = (("experts", "mlp.experts."), ("attention", "self_attn."), ("router", "mlp.gate."), ("dense MLP", "mlp."),
          ("embedding", "embed_tokens"), ("head", "lm_head"), ("norms", "norm"))  # fmt: skip


def layout_facts(config: Qwen3MoeConfig, layout: Layout, gpu_bytes: int) -> dict[str, Any]:
    """Sections of facts by name, for ranks of `gpu_bytes` of memory. Raises InputError if the model cannot split so."""
    check_layout(layout, split_sizes(config))
    stages = [_stage_memory(config, Part(layout, stage), gpu_bytes) for stage in range(layout.pp)]
    names = ["memory of a rank"] if layout.pp == 1 else [f"memory of a rank of stage {i}" for i in range(layout.pp)]
    capacity = min(stage["tokens of KV cache"] for stage in stages)
    sections: dict[str, Any] = {"layout": {"ranks": layout.world_size, "layout": str(layout)}}
    sections |= dict(zip(names, stages, strict=True))
    return sections | {"capacity": {"gpu_bytes": gpu_bytes, "tokens": capacity}, "traffic": _traffic(config, layout)}


def _stage_memory(config: Qwen3MoeConfig, part: Part, gpu_bytes: int) -> dict[str, Any]:
    specs = weight_specs(config, config.dtype, part=part)
    total, num_layers = sum(map(num_bytes_of, specs)), len(part.layers(config.num_layers))
    kv_bytes = 2 * num_layers * kv_heads_held(config, part) * config.head_dim * NUMPY_DTYPES[config.dtype].itemsize
    # activations, and logits of a step, are the plan's to say: they are not in it
    room = max(0, int(gpu_bytes * MEMORY_FRACTION) - total)
    return {
        "bytes of weights": total,
        **{f"bytes of these: {kind}": num_bytes for kind, num_bytes in _by_kind(specs).items()},
        "bytes of KV cache per token": kv_bytes,
        "tokens of KV cache": room // kv_bytes,
    }


def _by_kind(specs: Iterable[InputSpec]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for spec in specs:
        kind = next(kind for kind, part in _KINDS if part in spec.name)
        kinds[kind] = kinds.get(kind, 0) + num_bytes_of(spec)
    return kinds


def _traffic(config: Qwen3MoeConfig, layout: Layout) -> dict[str, Any]:
    """Messages of all stages. A ring sends 2 (n - 1) / n of an all-reduce's bytes from each rank."""
    size = layout.group_size
    row_bytes = config.hidden_size * NUMPY_DTYPES[config.dtype].itemsize
    reductions = config.num_layers * (1 + (layout.attention_degree > 1)) + 1 if size > 1 else 0
    gathered = config.vocab_size * NUMPY_DTYPES["fp32"].itemsize if size > 1 else 0
    return {
        "all-reduces a step": reductions,
        "all-reduced bytes per token": reductions * row_bytes,
        "sent by a rank for them, bytes per token": math.ceil(2 * (size - 1) / size * reductions * row_bytes),
        "gathered bytes per row of logits": gathered,
        "passed between stages, bytes per token": (layout.pp - 1) * row_bytes,
    }
