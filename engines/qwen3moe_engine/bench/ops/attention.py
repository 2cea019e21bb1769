"""PagedAttention alone: sequences of one length, decoding or with a prompt's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.bench.ops.rig import ELEMENT_BYTES, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls, num_copies
from qwen3moe_engine.bench.step_case import StepCase
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_plugins.kernels import PagedAttentionShape, PagedAttentionTensors

EPS = 1e-6


@dataclass(frozen=True)
class AttentionCase:
    """num_new tokens of each sequence, the last of its context. block_size: of the KV cache."""

    num_new: int
    sequences: StepCase
    block_size: int = 32

    @property
    def name(self) -> str:
        if self.num_new == 1:
            return f"decode {self.sequences}"
        context = self.sequences.contexts
        return f"prefill {self.num_new}" + (f" in {context}" if context.low > self.num_new else "")

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """Each call has a KV cache of its own, whose blocks lie in random order."""
        lens, num_seqs = np.array(self.sequences.draw(), np.int32), self.sequences.batch_size
        kv_bytes = int(lens.sum()) * 2 * sizes.num_kv_heads * sizes.head_dim * ELEMENT_BYTES
        count = num_calls(kv_bytes, l2_bytes)
        num_tokens, width = num_seqs * self.num_new, num_blocks_for(int(lens.max()), self.block_size)
        num_blocks, heads = num_seqs * width, sizes.num_heads + 2 * sizes.num_kv_heads
        shape = PagedAttentionShape(
            rig.dtype, num_tokens, num_seqs, sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, num_blocks,
            self.block_size, width, int(lens.max()), sizes.head_dim**-0.5, EPS,
        )  # fmt: skip
        shared = {
            "qkv": rig.random(num_tokens * heads * sizes.head_dim),
            "q_norm_weight": rig.random(sizes.head_dim, 0.1, 1.0),
            "k_norm_weight": rig.random(sizes.head_dim, 0.1, 1.0),
            "cos_sin_cache": rig.upload(_cos_sin(int(lens.max()), sizes.head_dim)),
            "positions": rig.upload((lens[:, None] - self.num_new + np.arange(self.num_new)).astype(np.int32)),
            "block_table": rig.upload(rig.rng.permutation(num_blocks).astype(np.int32)),
            "cu_seqlens": rig.upload(np.arange(num_seqs + 1, dtype=np.int32) * self.num_new),
            "context_lens": rig.upload(lens),
            "out": rig.empty(num_tokens * sizes.num_heads * sizes.head_dim * ELEMENT_BYTES),
        }
        block_elements = 2 * sizes.num_kv_heads * self.block_size * sizes.head_dim
        caches = [
            rig.random(num_blocks * block_elements, 3**0.5) for _ in range(min(count, num_copies(kv_bytes, l2_bytes)))
        ]
        tensors = [PagedAttentionTensors(**shared, kv_cache=caches[idx % len(caches)]) for idx in range(count)]
        # a new token sees those before it, and itself
        pairs = float(np.sum(self.num_new * (lens - (self.num_new - 1) / 2)))
        flops = 4 * pairs * sizes.num_heads * sizes.head_dim
        return Work(rig.bind("paged_attention", shape, tensors), kv_bytes, flops)


def _cos_sin(num_positions: int, head_dim: int) -> np.ndarray:
    """[P, D]: cosines, then sines, of angles that are as good as any here."""
    angles = np.outer(np.arange(num_positions), 1e4 ** -(np.arange(head_dim // 2) * 2 / head_dim))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
