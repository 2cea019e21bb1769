"""Which steps are captured, and what they are padded to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwen3moe_engine.batch import SequenceStep, pack_batch, pad_batch
from qwen3moe_engine.tensorrt.step_graphs import StepGraphs, StepShape, decode_buckets, prompt_bucket

MAX_SEQS, MAX_PROMPT = 24, 100


def make_graphs() -> StepGraphs:
    nothing: Any = None
    return StepGraphs(MAX_SEQS, MAX_PROMPT, nothing, nothing, nothing)


def batch_of(lengths: list[int], logits_of: list[int] | None = None):
    steps = [SequenceStep(np.arange(length, dtype=np.int32), 7, [3, 5, 1]) for length in lengths]
    return pack_batch(steps, 64, list(range(len(lengths))) if logits_of is None else logits_of)


def test_sizes_are_few_and_pad_little():
    sizes = {num_tokens: prompt_bucket(num_tokens) for num_tokens in range(2, 1025)}
    assert all(num_tokens <= size < num_tokens + max(16, num_tokens / 8) for num_tokens, size in sizes.items())
    assert len(set(sizes.values())) == 32 and max(sizes.values()) == 1024
    assert decode_buckets(MAX_SEQS) == [1, 2, 4, 8, 16, 24]


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([1], StepShape(1, 1)),
        ([1] * 5, StepShape(8, 8)),
        ([1] * 24, StepShape(24, 24)),
        ([1] * 25, None),
        ([2], StepShape(16, 1)),
        ([90], StepShape(96, 1)),
        ([97], StepShape(100, 1)),
        ([101], None),
        ([30, 1], None),
    ],
)
def test_decode_steps_and_prompts_that_come_alone_are_captured(lengths, shape):
    assert make_graphs().shape_for(batch_of(lengths)) == shape


def test_a_step_with_other_rows_of_logits_is_not():
    assert make_graphs().shape_for(batch_of([1, 1], logits_of=[0])) is None


def test_padding_is_behind_all_sequences():
    batch = batch_of([5])
    padded = pad_batch(batch, num_tokens=16, num_seqs=1, max_blocks=4)
    assert len(padded.tokens) == len(padded.positions) == 16
    np.testing.assert_array_equal(padded.tokens[:5], batch.tokens)
    np.testing.assert_array_equal(padded.cu_seqlens, [0, 5])
    np.testing.assert_array_equal(padded.block_table, [[3, 0, 0, 0]])
    np.testing.assert_array_equal(padded.logits_indices, [4])
