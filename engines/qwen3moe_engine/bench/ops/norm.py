"""RMSNorm and AddRMSNorm alone. Their operands are activations, which lie in L2 where they fit."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3moe_engine.bench.ops.rig import ELEMENT_BYTES, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls
from qwen3moe_plugins.kernels import RMSNormShape, RMSNormTensors

EPS = 1e-6


@dataclass(frozen=True)
class NormCase:
    """adds: AddRMSNorm, which writes the sum with a residual too."""

    num_tokens: int
    adds: bool

    @property
    def name(self) -> str:
        return f"{'add_rms_norm' if self.adds else 'rms_norm'} {self.num_tokens}"

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """All calls have the same operands."""
        H = sizes.hidden_size
        num_bytes = self.num_tokens * H * ELEMENT_BYTES
        x, residual = rig.random(self.num_tokens * H), rig.random(self.num_tokens * H) if self.adds else None
        out, total = rig.empty(num_bytes), rig.empty(num_bytes) if self.adds else None
        weight, moved = rig.random(H, 0.1, 1.0), (4 if self.adds else 2) * num_bytes
        tensors = [RMSNormTensors(x, residual, weight, out, total)] * num_calls(moved, l2_bytes)
        return Work(rig.bind("rms_norm", RMSNormShape(rig.dtype, self.num_tokens, H, EPS), tensors), moved)
