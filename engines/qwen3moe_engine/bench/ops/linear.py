"""Linear alone: the products by a layer's weights, and the logits."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3moe_engine.bench.ops.rig import ELEMENT_BYTES, FLOAT32_BYTES, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls, num_copies
from qwen3moe_plugins.kernels import LinearShape, LinearTensors

NAME = "linear"


@dataclass(frozen=True)
class LinearCase:
    """product: a name in `OpSizes.products`; logits are not rounded."""

    product: str
    num_tokens: int

    @property
    def name(self) -> str:
        return f"{self.product} {self.num_tokens}"

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """Each call has a weight of its own."""
        in_features, out_features = sizes.products[self.product]
        is_float32 = self.product == "logits"
        out_bytes = self.num_tokens * out_features * (FLOAT32_BYTES if is_float32 else ELEMENT_BYTES)
        weight_bytes = in_features * out_features * ELEMENT_BYTES
        count = num_calls(weight_bytes, l2_bytes)
        x, out = rig.random(self.num_tokens * in_features), rig.empty(out_bytes)
        weights = [
            rig.random(in_features * out_features, (3 / in_features) ** 0.5)
            for _ in range(min(count, num_copies(weight_bytes, l2_bytes)))
        ]
        shape = LinearShape(rig.dtype, int(is_float32), self.num_tokens, in_features, out_features)
        tensors = [LinearTensors(x, weights[idx % len(weights)], out) for idx in range(count)]
        moved = weight_bytes + self.num_tokens * in_features * ELEMENT_BYTES + out_bytes
        return Work(rig.bind(NAME, shape, tensors), moved, 2.0 * self.num_tokens * in_features * out_features)
