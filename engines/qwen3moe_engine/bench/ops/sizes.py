"""What of a model the operators' shapes follow from. Owns: reading it from a manifest, as one rank has it."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3moe_engine.manifest import InputSpec, Manifest
from qwen3moe_plugins.errors import InputError

# Products by what a weight's name ends in. A tied head is the embedding.
_PRODUCTS = {
    "qkv": ("self_attn.qkv_proj.weight",),
    "output": ("self_attn.o_proj.weight",),
    "router": ("mlp.gate.weight",),
    "logits": ("lm_head.weight", "embed_tokens.weight"),
}


@dataclass(frozen=True)
class OpSizes:
    """H hidden_size, I intermediate_size of an expert, E num_experts of which a rank has num_local_experts.

    products: in features and out features of the products by a weight, by name. dtype: bf16 or fp16.
    """

    dtype: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_local_experts: int
    top_k: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    products: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, manifest: Manifest) -> OpSizes:
        """Raises InputError for a model whose first layers have no experts, or whose dtype no kernel has."""
        if manifest.dtype not in ("bf16", "fp16"):
            remedy = "export again with --dtype"
            raise InputError("export", got=manifest.dtype, expected="bf16 or fp16", remedy=remedy)
        dims, weights = manifest.dims, manifest.of_kind("weight")
        down = _first(weights, ("experts.down_proj",))
        if down is None:
            got, remedy = "a stage without experts", "name a folder that has a layer with experts"
            raise InputError("export", got=got, expected="operators of Qwen3-MoE", remedy=remedy)
        products = {
            name: (spec.static_shape[1], spec.static_shape[0])
            for name, suffixes in _PRODUCTS.items()
            if (spec := _first(weights, suffixes)) is not None
        }
        num_kv_heads = manifest.of_kind("kv_cache")[0].shape[2]
        assert isinstance(num_kv_heads, int), "a rank's heads are known"
        num_local_experts, hidden_size, intermediate_size = down.static_shape
        return cls(
            dtype=manifest.dtype,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=dims.num_experts,
            num_local_experts=num_local_experts,
            top_k=dims.top_k,
            num_heads=products["qkv"][1] // dims.head_dim - 2 * num_kv_heads,
            num_kv_heads=num_kv_heads,
            head_dim=dims.head_dim,
            vocab_size=products["logits"][1] if "logits" in products else dims.vocab_size,
            products=products,
        )


def _first(weights: list[InputSpec], suffixes: tuple[str, ...]) -> InputSpec | None:
    """The first weight with the first of `suffixes` that any has."""
    found = (spec for suffix in suffixes for spec in weights if spec.name.endswith(suffix))
    return next(found, None)
