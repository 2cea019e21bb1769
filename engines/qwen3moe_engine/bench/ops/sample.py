"""The sampler alone: greedy rows, or rows with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.bench.ops.rig import FLOAT32_BYTES, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.ops.turns import num_calls, num_copies
from qwen3moe_plugins.kernels import SampleShape, SampleTensors

NAME = "sample"
TOKEN_BYTES = 4


@dataclass(frozen=True)
class SampleCase:
    """num_rows of logits; each is drawn from, or its best token is taken."""

    num_rows: int
    is_greedy: bool

    @property
    def name(self) -> str:
        return f"{NAME} {self.num_rows}" + (" greedy" if self.is_greedy else "")

    def prepare(self, rig: Rig, sizes: OpSizes, l2_bytes: int) -> Work:
        """Each call has logits of its own, as the product ahead writes more than L2 keeps at many rows."""
        rows, num_bytes = self.num_rows, self.num_rows * sizes.vocab_size * FLOAT32_BYTES
        count = num_calls(num_bytes, l2_bytes)
        logits = rig.rng.standard_normal((rows, sizes.vocab_size), np.float32) * 3
        copies = [rig.upload(logits) for _ in range(min(count, num_copies(num_bytes, l2_bytes)))]
        parameters: dict[str, NDArray] = {
            "temperature": np.full(rows, 0.0 if self.is_greedy else 0.7, np.float32),
            "top_k": np.full(rows, 0 if self.is_greedy else 20, np.int32),
            "top_p": np.full(rows, 1.0 if self.is_greedy else 0.8, np.float32),
            "min_p": np.zeros(rows, np.float32),
            "seed": np.arange(rows, dtype=np.uint64),
            "offset": np.zeros(rows, np.uint64),
        }
        addresses = {name: rig.upload(values) for name, values in parameters.items()}
        addresses["token"] = rig.empty(rows * TOKEN_BYTES)
        tensors = [SampleTensors(logits=copies[idx % len(copies)], **addresses) for idx in range(count)]
        return Work(rig.bind(NAME, SampleShape(rows, sizes.vocab_size), tensors), num_bytes)
