"""TensorRT reserves workspace for the largest shapes of a profile: no smaller shape may need more."""

from __future__ import annotations

import random

import pytest

from qwen3moe_plugins.kernels import BF16, KernelLibrary, LinearShape, MoEShape, PagedAttentionShape
from qwen3moe_plugins.library import KERNELS

# Largest num_tokens and num_seqs of a profile: prefill with decode, decode alone, one sequence.
PROFILES = [(8192, 256), (256, 256), (16, 16), (2048, 1)]


@pytest.fixture(scope="module")
def library(built_library) -> KernelLibrary:
    return KernelLibrary(built_library(KERNELS))


def smaller(rng: random.Random, largest: int) -> int:
    return rng.choice([largest, rng.randint(1, largest), rng.randint(1, max(1, largest // 50))])


@pytest.mark.parametrize(("max_tokens", "max_seqs"), PROFILES)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(32, 4, 128), (64, 4, 128), (8, 1, 128), (8, 2, 64)]
)
def test_paged_attention(library, num_heads, num_kv_heads, head_dim, max_tokens, max_seqs):
    def workspace(num_tokens: int, num_seqs: int, num_blocks: int, max_blocks: int) -> int:
        shape = PagedAttentionShape(
            num_tokens=num_tokens, num_seqs=num_seqs, num_heads=num_heads, num_kv_heads=num_kv_heads,
            head_dim=head_dim, num_blocks=num_blocks, block_size=16, max_blocks=max_blocks, num_positions=40960,
            scale=head_dim**-0.5, eps=1e-6,
        )  # fmt: skip
        return library.workspace_size("paged_attention", shape)

    rng = random.Random(max_tokens + num_heads)
    largest = (max_tokens, max_seqs, 65536, 2560)
    reserved = workspace(*largest)
    assert reserved > 0
    for _ in range(2000):
        shape = [smaller(rng, extent) for extent in largest]
        assert workspace(*shape) <= reserved, shape


@pytest.mark.parametrize("max_tokens", [1, 64, 8192])
def test_moe(library, max_tokens):
    def workspace(num_tokens: int) -> int:
        shape = MoEShape(
            num_tokens=num_tokens, hidden_size=2048, intermediate_size=768, num_experts=128, num_local_experts=128,
            top_k=8, norm_topk_prob=1,
        )  # fmt: skip
        return library.workspace_size("moe", shape)

    reserved = workspace(max_tokens)
    assert reserved > 0
    for num_tokens in range(1, max_tokens):
        assert workspace(num_tokens) <= reserved, num_tokens


@pytest.mark.parametrize("in_features", [2048, 104])
def test_linear(library, in_features):
    """Few tokens need none; from the first count that does, all do, and as much."""
    sizes = [
        library.workspace_size("linear", LinearShape(BF16, 0, tokens, in_features, 64)) for tokens in range(1, 300)
    ]
    assert sizes == sorted(sizes) and sizes[-1] > 0
