"""The seam between scheduling and a runtime that executes the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.logits import Draw, Drawn, Logits


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
class OverlappingExecutor(Executor, Protocol):
    """One that takes a step while the one before runs, and has the tokens that are drawn from that one's logits: the
    `carried` of a batch, with which `execute` may be called, too."""

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> Drawn:
        """Starts a step and the draw of its tokens. At most one step may be in flight that has not been waited for."""
        ...


@runtime_checkable
class WatchedExecutor(Executor, Protocol):
    """One that may fail between steps, too, as its ranks are other processes."""

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        """Calls `tell`, from another thread, with why no step can run any more, as soon as that is so."""
        ...
