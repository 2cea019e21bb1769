"""The seam between scheduling and a runtime that executes the graph."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch


class Executor(Protocol):
    """Owns the graph, its weights and the KV pool of `num_blocks` blocks of `block_size` tokens."""

    num_blocks: int
    block_size: int
    max_model_len: int

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """Runs a step and keeps its keys and values. Returns logits [N, vocab_size]."""
        ...
