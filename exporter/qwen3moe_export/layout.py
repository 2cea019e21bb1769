"""The engine's weight layout: which graph input holds which tensors of a published checkpoint.

Owns: names, shapes and order of the program's weights. One rule packs them all: a weight is the rows of its sources,
one after the other, seen in its own shape - so packing copies bytes, and any split by rows reads part of a file.
Must not know torch.

Legend: H hidden_size, Hq num_heads, Hkv num_kv_heads, D head_dim, E num_experts, I expert or MLP width, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwen3moe_engine.manifest import InputSpec
from qwen3moe_export.config import Qwen3MoeConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer_idx: int) -> str:
    return f"model.layers.{layer_idx}."


def weight_specs(config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool = False) -> list[InputSpec]:
    """Every weight of the program, in the order of its graph inputs. `dtype`: bf16, fp16 or fp32."""
    hidden = config.hidden_size

    def weight(name: str, shape: tuple[int, ...], sources: dict[str, int] | None = None, repeat: int = 1) -> InputSpec:
        sources = sources or {name: shape[0]}
        return InputSpec(name, "weight", dtype, shape, tuple(sources), tuple(sources.values()), repeat)

    def layer(layer_idx: int) -> Iterator[InputSpec]:
        prefix = layer_prefix(layer_idx)
        yield weight(f"{prefix}input_layernorm.weight", (hidden,))
        yield from attention(f"{prefix}self_attn.")
        yield weight(f"{prefix}post_attention_layernorm.weight", (hidden,))
        yield from sparse_mlp(f"{prefix}mlp.") if config.is_sparse(layer_idx) else dense_mlp(f"{prefix}mlp.")

    def attention(prefix: str) -> Iterator[InputSpec]:
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        for part, columns in (("weight", (hidden,)), ("bias", ())):
            if part == "weight" or config.attention_bias:
                sources = {f"{prefix}{x}_proj.{part}": q_size if x == "q" else kv_size for x in "qkv"}
                yield weight(f"{prefix}qkv_proj.{part}", (q_size + 2 * kv_size, *columns), sources)
        yield weight(f"{prefix}q_norm.weight", (config.head_dim,))
        yield weight(f"{prefix}k_norm.weight", (config.head_dim,))
        yield weight(f"{prefix}o_proj.weight", (hidden, q_size))
        if config.attention_bias:
            yield weight(f"{prefix}o_proj.bias", (hidden,))

    def dense_mlp(prefix: str) -> Iterator[InputSpec]:
        width = config.intermediate_size
        sources = {f"{prefix}gate_proj.weight": width, f"{prefix}up_proj.weight": width}
        yield weight(f"{prefix}gate_up_proj.weight", (2 * width, hidden), sources)
        yield weight(f"{prefix}down_proj.weight", (hidden, width))

    def sparse_mlp(prefix: str) -> Iterator[InputSpec]:
        num_experts, width, expert = config.num_experts, config.moe_intermediate_size, f"{prefix}experts.{{}}."
        gate_up = {f"{expert}gate_proj.weight": width, f"{expert}up_proj.weight": width}
        yield weight(f"{prefix}gate.weight", (num_experts, hidden))
        yield weight(f"{prefix}experts.gate_up_proj", (num_experts, 2 * width, hidden), gate_up, num_experts)
        yield weight(
            f"{prefix}experts.down_proj",
            (num_experts, hidden, width),
            {f"{expert}down_proj.weight": hidden},
            num_experts,
        )

    embedding = weight(EMBEDDING, (config.vocab_size, hidden))
    head = [] if config.tie_word_embeddings else [weight(LM_HEAD, (config.vocab_size, hidden))]
    layers = [spec for layer_idx in range(config.num_layers) for spec in layer(layer_idx)]
    return [
        *([] if EMBEDDING in unused_sources(config, takes_embeddings) else [embedding]),
        *layers,
        weight(FINAL_NORM, (hidden,)),
        *head,
    ]


def unused_sources(config: Qwen3MoeConfig, takes_embeddings: bool) -> tuple[str, ...]:
    """Tensors of the checkpoint that the program does not take: the embedding, where the caller embeds."""
    return (EMBEDDING,) if takes_embeddings and not config.tie_word_embeddings else ()


def hidden_state_names(num_layers: int) -> dict[str, str]:
    """By norm weight, the name of what it normalises: what enters each layer, and what enters the final norm."""
    weights = [f"{layer_prefix(layer_idx)}input_layernorm.weight" for layer_idx in range(num_layers)]
    return {weight: f"hidden_states.{index}" for index, weight in enumerate([*weights, FINAL_NORM])}


def expert_map_name(layer_idx: int) -> str:
    return f"{layer_prefix(layer_idx)}mlp.expert_map"


def kv_cache_name(layer_idx: int) -> str:
    return f"kv_cache.{layer_idx}"
