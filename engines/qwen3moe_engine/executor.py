"""The seam between scheduling and a runtime that executes the graph."""

from __future__ import annotations

from typing import Protocol

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.logits import Logits


class Executor(Protocol):
    """Owns the graph, its weights and the KV pool of `num_blocks` blocks of `block_size` tokens."""

    num_blocks: int
    block_size: int
    max_model_len: int

    def execute(self, batch: Batch) -> Logits:
        """Starts a step, which keeps its keys and values. It has ended when its logits have been drawn or read."""
        ...

    def close(self) -> None:
        """Gives back what outlives the object: device memory, processes."""
        ...
