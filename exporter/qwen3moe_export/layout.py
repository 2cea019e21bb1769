"""The engine's weight layout: which graph input holds which tensors of a published checkpoint.

Owns: names, shapes and order of the program's weights. One rule packs them all: a weight is the rows of its sources,
one after the other, seen in its own shape - so packing copies bytes, and any split by rows reads part of a file. A
rank's weight is the same rule over its part of each source. Must not know torch.

Legend: H hidden_size, Hq num_heads, Hkv num_kv_heads, D head_dim, E num_experts, I expert or MLP width, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qwen3moe_engine.layout import WHOLE, Layout, Part
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.sharding import SplitSizes, shard_of
from qwen3moe_export.config import Qwen3MoeConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer_idx: int) -> str:
    return f"model.layers.{layer_idx}."


def weight_specs(
    config: Qwen3MoeConfig, dtype: str, takes_embeddings: bool = False, part: Part = WHOLE
) -> list[InputSpec]:
    """Every weight of the program, in the order of its graph inputs, as one rank holds it. `dtype`: bf16, fp16 or
    fp32."""
    hidden = config.hidden_size

    def weight(name: str, shape: tuple[int, ...], sources: dict[str, int] | None = None, repeat: int = 1) -> InputSpec:
        sources = sources or {name: shape[0]}
        whole = InputSpec(name, "weight", dtype, shape, tuple(sources), tuple(sources.values()), repeat)
        return whole if part.layout.group_size == 1 else _sharded(whole, part.layout, config.num_kv_heads)

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
    layers = [spec for layer_idx in part.layers(config.num_layers) for spec in layer(layer_idx)]
    unused = unused_sources(config, takes_embeddings, part)
    return [spec for spec in (embedding, *layers, weight(FINAL_NORM, (hidden,)), *head) if spec.name not in unused]


def _sharded(whole: InputSpec, layout: Layout, num_kv_heads: int) -> InputSpec:
    """What one rank holds of `whole`."""
    shards = tuple(shard_of(source, layout, num_kv_heads) for source in whole.sources)
    rows = tuple(shard.size_of(n, "rows") for n, shard in zip(whole.source_rows, shards, strict=True))
    num_slots = shards[0].size_of(whole.repeat + layout.redundant_experts, "experts")
    columns = [shards[0].size_of(n, "columns") for n in whole.static_shape[1:][-1:]]
    leading = (num_slots, sum(rows)) if len(whole.shape) == 3 else (sum(rows),)
    return replace(whole, shape=(*leading, *columns), source_rows=rows, shards=shards)


def unused_sources(config: Qwen3MoeConfig, takes_embeddings: bool, part: Part = WHOLE) -> tuple[str, ...]:
    """Tensors outside the layers that the program does not take: the embedding, where the caller embeds, and those of
    other stages."""
    embeds = part.is_first and not takes_embeddings
    is_used = {
        EMBEDDING: embeds or (part.is_last and config.tie_word_embeddings),
        FINAL_NORM: part.is_last,
        LM_HEAD: part.is_last or config.tie_word_embeddings,  # tied: a checkpoint has none
    }
    return tuple(name for name, used in is_used.items() if not used)


def split_sizes(config: Qwen3MoeConfig) -> SplitSizes:
    """What a layout's degrees must divide."""
    kinds = {config.is_sparse(layer_idx) for layer_idx in range(config.num_layers)}
    return SplitSizes(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        num_experts=config.num_experts if True in kinds else None,
        expert_width=config.moe_intermediate_size if True in kinds else None,
        mlp_width=config.intermediate_size if False in kinds else None,
    )


def kv_heads_held(config: Qwen3MoeConfig, part: Part) -> int:
    """Key/value heads of a rank: a head that several ranks share is on each of them."""
    return max(1, config.num_kv_heads // part.layout.attention_degree)


def hidden_state_names(num_layers: int, part: Part = WHOLE) -> dict[str, str]:
    """By norm weight, the name of what it normalises: what enters each layer, and what enters the final norm."""
    names = {
        f"{layer_prefix(layer_idx)}input_layernorm.weight": f"hidden_states.{layer_idx}"
        for layer_idx in part.layers(num_layers)
    }
    return names | ({FINAL_NORM: f"hidden_states.{num_layers}"} if part.is_last else {})


def expert_map_name(layer_idx: int) -> str:
    return f"{layer_prefix(layer_idx)}mlp.expert_map"


def load_name(layer_idx: int) -> str:
    return f"{layer_prefix(layer_idx)}mlp.load"


def kv_cache_name(layer_idx: int) -> str:
    return f"kv_cache.{layer_idx}"


def layer_of(name: str) -> int:
    """The layer that an expert map or a KV cache belongs to."""
    return next(int(part) for part in name.split(".") if part.isdigit())
