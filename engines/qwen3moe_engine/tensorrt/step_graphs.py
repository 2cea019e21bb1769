"""CUDA graphs of steps.

Owns: which steps are captured, what they are padded to, and the contexts they were captured from. What a step's kernels
do follows from shapes alone, so a graph serves every step of its shape. Must not know what is bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.tensorrt.cuda import Graph, Stream

MIN_PADDED_PROMPT = 16  # tokens


@dataclass(frozen=True)
class StepShape:
    """Of each sequence there is a row of logits."""

    num_tokens: int
    num_seqs: int


class StepGraphs:
    """Of decode steps, and of prompts of up to `max_prompt` tokens that come alone: behind other work the host is ahead
    of the GPU anyway. Both limits are at most the plan's.

    make_context: for steps of so many tokens. enqueue: puts a step with these inputs on `stream`.
    """

    def __init__(
        self,
        max_seqs: int,
        max_prompt: int,
        stream: Stream,
        make_context: Callable[[int], Any],
        enqueue: Callable[[Any, dict[str, NDArray]], None],
    ):
        self._max_prompt, self._stream = max_prompt, stream
        self._make_context, self._enqueue = make_context, enqueue
        self._decode_buckets = decode_buckets(max_seqs)
        self._captured: dict[StepShape, _CapturedStep] = {}

    @property
    def decode_shapes(self) -> list[StepShape]:
        return [StepShape(bucket, bucket) for bucket in self._decode_buckets]

    def shape_for(self, batch: Batch) -> StepShape | None:
        """What to pad the step to; None if it is not to be captured."""
        num_tokens, num_seqs = len(batch.tokens), len(batch.context_lens)
        if len(batch.logits_indices) != num_seqs:
            return None
        if num_tokens == num_seqs <= self._decode_buckets[-1]:
            bucket = next(bucket for bucket in self._decode_buckets if bucket >= num_seqs)
            return StepShape(bucket, bucket)
        if num_seqs == 1 and num_tokens <= self._max_prompt:
            return StepShape(min(prompt_bucket(num_tokens), self._max_prompt), 1)
        return None

    def run(self, shape: StepShape, arrays: dict[str, NDArray]) -> None:
        """Enqueues a step of that shape. The first is run as it is, since cuBLASLt prepares a shape in its first call,
        and captured while the GPU is busy with it."""
        if (step := self._captured.get(shape)) is not None:
            step.graph.launch()
            return
        context = self._make_context(shape.num_tokens)  # of its own: a graph is good until it sees another shape
        self._enqueue(context, arrays)
        graph = self._stream.capture(lambda: self._enqueue(context, arrays))
        self._captured[shape] = _CapturedStep(context, graph)

    def close(self) -> None:
        for step in self._captured.values():
            step.graph.close()
        self._captured.clear()


@dataclass(frozen=True)
class _CapturedStep:
    context: Any
    graph: Graph


def decode_buckets(max_seqs: int) -> list[int]:
    """The numbers of sequences that decode steps are padded to, ascending: max_seqs and the powers of two below it, so
    that few graphs serve every batch."""
    return [1 << bit for bit in range((max_seqs - 1).bit_length())] + [max_seqs]


def prompt_bucket(num_tokens: int) -> int:
    """What a prompt is padded to: eight sizes between a power of two and the next, as padding costs its share."""
    size = max(MIN_PADDED_PROMPT, 1 << max(0, (num_tokens - 1).bit_length() - 4))
    return -(-num_tokens // size) * size
