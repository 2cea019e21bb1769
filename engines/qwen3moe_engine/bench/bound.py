"""The least time that memory allows a decode step.

Owns: what a step cannot do without reading. Must not know executors.

Each weight is read once, keys and values once; activations cost nothing. Of the experts it is those that the step's
tokens choose: with uniform routing an expected E (1 - (1 - k/E)^B) of E, for top-k of B tokens. With a skew it is the
same sum over both kinds of experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qwen3moe_engine.manifest import InputSpec, Manifest
from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_engine.weights import num_bytes_of

EXPERT_KINDS = ("experts.gate_up_proj", "experts.down_proj")  # parts of the names of the weights that hold experts
EMBEDDING = "embed_tokens"


def decode_bytes(manifest: Manifest, contexts: Sequence[int], skew: RouterSkew | None = None) -> float:
    """Bytes that a decode step of sequences with so many tokens each reads."""
    dims, batch_size = manifest.dims, len(contexts)
    share = touched_experts(dims.num_experts, dims.top_k, batch_size, skew) / dims.num_experts
    weights = sum(num_bytes_of(spec) * _share_read(spec, share, batch_size) for spec in manifest.of_kind("weight"))
    return weights + sum(contexts) * _kv_bytes_per_token(manifest)


def touched_experts(num_experts: int, top_k: int, num_tokens: int, skew: RouterSkew | None = None) -> float:
    """How many experts so many tokens choose, expected."""
    if skew is None:
        return num_experts * (1.0 - (1.0 - top_k / num_experts) ** num_tokens)
    preferred, other = skew.rates(num_experts, top_k)
    others = num_experts - skew.num_experts
    return skew.num_experts * (1.0 - (1.0 - preferred) ** num_tokens) + others * (1.0 - (1.0 - other) ** num_tokens)


def _share_read(spec: InputSpec, experts_share: float, batch_size: int) -> float:
    if EMBEDDING in spec.name:
        return min(1.0, batch_size / spec.static_shape[0])  # a row for each token
    return experts_share if any(part in spec.name for part in EXPERT_KINDS) else 1.0


def _kv_bytes_per_token(manifest: Manifest) -> int:
    """All layers' [2, num_kv_heads, head_dim]."""
    dims = manifest.dims
    itemsize = num_bytes_of(InputSpec("", "kv_cache", manifest.of_kind("kv_cache")[0].dtype, (1,)))
    return dims.num_layers * math.prod((2, dims.num_kv_heads, dims.head_dim)) * itemsize
