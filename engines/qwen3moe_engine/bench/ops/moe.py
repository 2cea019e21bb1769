"""MoE alone: a step's tokens, routed evenly by chance or with a skew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.bench.ops.rig import ELEMENT_BYTES, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls, num_copies
from qwen3moe_engine.random_model import RouterSkew, preference
from qwen3moe_plugins.kernels import MoEShape, MoETensors

NAME = "moe"


@dataclass(frozen=True)
class MoECase:
    """skew: how far routing prefers the first experts; None for even by chance."""

    num_tokens: int
    skew: RouterSkew | None = None

    @property
    def name(self) -> str:
        return f"{NAME} {self.num_tokens}" + (f" skew {self.skew}" if self.skew else "")

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """Each call has logits of its own, and weights in turns."""
        E, E_local, H, width = sizes.num_experts, sizes.num_local_experts, sizes.hidden_size, sizes.intermediate_size
        expert_bytes = 3 * H * width * ELEMENT_BYTES
        first = router_logits(rig, self.num_tokens, sizes, self.skew)
        count = num_calls(max(local_work(first, sizes)[1], 1) * expert_bytes, l2_bytes)
        logits = [first, *(router_logits(rig, self.num_tokens, sizes, self.skew) for _ in range(count - 1))]
        assignments, experts = np.mean([local_work(each, sizes) for each in logits], axis=0).tolist()
        weights = [
            (rig.random(E_local * 2 * width * H, (3 / H) ** 0.5), rig.random(E_local * H * width, (3 / width) ** 0.5))
            for _ in range(min(count, num_copies(E_local * expert_bytes, l2_bytes)))
        ]
        hidden, out = rig.random(self.num_tokens * H), rig.empty(self.num_tokens * H * ELEMENT_BYTES)
        slots = np.full(E, -1, np.int32)
        slots[:E_local] = np.arange(E_local)
        expert_map = rig.upload(slots)
        shape = MoEShape(rig.dtype, self.num_tokens, H, width, E, E_local, sizes.top_k, 1)
        tensors = [
            MoETensors(hidden, rig.upload_rounded(each), *weights[idx % len(weights)], expert_map, out)
            for idx, each in enumerate(logits)
        ]
        calls = rig.bind(NAME, shape, tensors)
        return Work(calls, experts * expert_bytes, assignments * 2 * 3 * H * width)


def router_logits(rig: Rig, num_tokens: int, sizes: OpSizes, skew: RouterSkew | None) -> NDArray[np.float32]:
    """[num_tokens, E] with variance 1; of preferred experts above the others' as `RouterSkew` says."""
    logits = rig.rng.standard_normal((num_tokens, sizes.num_experts), np.float32)
    if skew is not None:
        logits[:, : skew.num_experts] += preference(skew, sizes.num_experts, sizes.top_k, variance=0.0)
    return logits


def local_work(logits: NDArray[np.float32], sizes: OpSizes) -> tuple[int, int]:
    """Of what these logits choose, that this rank has (the first experts): assignments, and different experts."""
    chosen = np.argpartition(-logits, sizes.top_k, axis=1)[:, : sizes.top_k]
    local = chosen[chosen < sizes.num_local_experts]
    return local.size, len(np.unique(local))
