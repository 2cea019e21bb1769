"""The seam between scheduling and a runtime that executes the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class WatchedExecutor(Executor, Protocol):
    """One that may fail between steps, too, as its ranks are other processes."""

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        """Calls `tell`, from another thread, with why no step can run any more, as soon as that is so."""
        ...
