"""What `bench ops` measures. Owns: the lists."""

from __future__ import annotations

from typing import Protocol

from qwen3moe_engine.bench.ops.attention import AttentionCase
from qwen3moe_engine.bench.ops.linear import LinearCase
from qwen3moe_engine.bench.ops.moe import MoECase
from qwen3moe_engine.bench.ops.norm import NormCase
from qwen3moe_engine.bench.ops.rig import Rig, Work
from qwen3moe_engine.bench.ops.sample import SampleCase
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.step_case import StepCase
from qwen3moe_engine.random_model import RouterSkew

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)
MAX_LOGITS = 256  # rows of a step
DECODES = [
    "1x1024",
    "8x1024",
    "32x1024",
    "64x1024",
    "128x1024",
    "256x1024",
    "1x8192",
    "8x8192",
    "64x4096",
    "64x1-8191",
    "256x4096",
    "256x1-8191",
]
PREFILLS = ((128, 128), (2048, 2048), (8192, 8192), (512, 32768))
NORMS = (1, 8, 64, 256, 2048, 8192)
ROWS = (1, 8, 64, 256)


class OpCase(Protocol):
    """A shape of an operator."""

    @property
    def name(self) -> str: ...

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """Operands in the rig's memory, and the calls on them."""


def cases_of(sizes: OpSizes, skew: RouterSkew | None) -> dict[str, list[OpCase]]:
    """By group, in the order of a table."""
    return {
        "moe": [MoECase(count, skew) for count in TOKENS],
        "decode": [AttentionCase(1, StepCase.parse(case, "decode")) for case in DECODES],
        "prefill": [AttentionCase(new, StepCase.parse(f"1x{context}", "prefill")) for new, context in PREFILLS],
        "linear": [
            LinearCase(product, count)
            for product in sizes.products
            for count in TOKENS
            if product != "logits" or count <= MAX_LOGITS
        ],
        "norm": [NormCase(count, adds) for adds in (False, True) for count in NORMS],
        "sample": [SampleCase(count, is_greedy) for is_greedy in (True, False) for count in ROWS],
    }
