"""PagedAttention alone: sequences that decode, or that have many new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.bench.ops.rig import ELEMENT_BYTES, Call, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls, num_copies
from qwen3moe_engine.bench.step_case import StepCase
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_plugins.kernels import PagedAttentionShape, PagedAttentionTensors

NAME, EPS = "paged_attention", 1e-6


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
        """Each call has a KV cache of its own."""
        lens = np.array(self.sequences.draw(), np.int32)
        kv_bytes = int(lens.sum()) * 2 * sizes.num_kv_heads * sizes.head_dim * ELEMENT_BYTES
        batch = AttentionBatch((self.num_new,) * len(lens), tuple(lens.tolist()), self.block_size)
        count = num_calls(kv_bytes, l2_bytes)
        calls = batch.bind(rig, sizes, count, min(count, num_copies(kv_bytes, l2_bytes)))
        # a new token sees those before it, and itself
        pairs = float(np.sum(self.num_new * (lens - (self.num_new - 1) / 2)))
        return Work(calls, kv_bytes, 4 * pairs * sizes.num_heads * sizes.head_dim)


@dataclass(frozen=True)
class AttentionBatch:
    """new_lens tokens of each sequence, the last of context_lens; a sequence may have none."""

    new_lens: Sequence[int]
    context_lens: Sequence[int]
    block_size: int

    def bind(self, rig: Rig, sizes: OpSizes, count: int, num_caches: int) -> list[Call]:
        """Calls that take turns with KV caches, whose blocks lie in random order."""
        width = num_blocks_for(max(self.context_lens), self.block_size)
        num_blocks = len(self.new_lens) * width
        elements = num_blocks * 2 * sizes.num_kv_heads * self.block_size * sizes.head_dim
        caches = [rig.random(elements, 3**0.5) for _ in range(num_caches)]
        shape = PagedAttentionShape(
            rig.dtype, sum(self.new_lens), len(self.new_lens), sizes.num_heads, sizes.num_kv_heads, sizes.head_dim,
            num_blocks, self.block_size, width, max(self.context_lens), sizes.head_dim**-0.5, EPS,
        )  # fmt: skip
        heads = sizes.num_heads + 2 * sizes.num_kv_heads
        operands = {
            "qkv": rig.random(sum(self.new_lens) * heads * sizes.head_dim),
            "q_norm_weight": rig.random(sizes.head_dim, 0.1, 1.0),
            "k_norm_weight": rig.random(sizes.head_dim, 0.1, 1.0),
            "cos_sin_cache": rig.upload(_cos_sin(max(self.context_lens), sizes.head_dim)),
            "block_table": rig.upload(rig.rng.permutation(num_blocks).astype(np.int32)),
            "out": rig.empty(sum(self.new_lens) * sizes.num_heads * sizes.head_dim * ELEMENT_BYTES),
        }
        operands |= {name: rig.upload(values) for name, values in self.metadata().items()}
        tensors = [PagedAttentionTensors(**operands, kv_cache=caches[idx % num_caches]) for idx in range(count)]
        return rig.bind(NAME, shape, tensors)

    def metadata(self) -> dict[str, NDArray[np.int32]]:
        """Of the operator's inputs."""
        pairs = zip(self.new_lens, self.context_lens, strict=True)
        positions = [position for new, context in pairs for position in range(context - new, context)]
        return {
            "positions": np.array(positions, np.int32),
            "cu_seqlens": np.cumsum([0, *self.new_lens], dtype=np.int32),
            "context_lens": np.array(self.context_lens, np.int32),
        }


def _cos_sin(num_positions: int, head_dim: int) -> NDArray[np.float32]:
    """[P, D]: cosines, then sines, of angles that are as good as any here."""
    angles = np.outer(np.arange(num_positions), 1e4 ** -(np.arange(head_dim // 2) * 2 / head_dim))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
