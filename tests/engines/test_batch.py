"""The arrays of a packed step, spelled out, and their arithmetic on any step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for


def test_prefill_decode_and_empty_continuation():
    steps = [
        SequenceStep(np.array([11, 12, 13], np.int32), 0, [7, 8]),
        SequenceStep(np.array([21], np.int32), 4, [3, 1]),
        SequenceStep(np.array([], np.int32), 2, [5]),
        SequenceStep(np.array([31, 32], np.int32), 3, [0, 9, 2]),
    ]
    batch = pack_batch(steps, block_size=4, logits_of=[1, 3])
    expected = {
        "input_ids": [11, 12, 13, 21, 31, 32],
        "positions": [0, 1, 2, 4, 3, 4],
        "block_table": [[7, 0], [3, 1], [5, 0], [0, 9]],
        "cu_seqlens": [0, 3, 4, 4, 6],
        "context_lens": [3, 5, 2, 5],
        "logits_indices": [3, 5],
    }
    assert {name: array.tolist() for name, array in batch.inputs().items()} == expected
    assert all(array.dtype == np.int32 for array in batch.inputs().values())


def test_logits_of_every_token():
    steps = [SequenceStep(np.array([5, 6], np.int32), 1, [0]), SequenceStep(np.array([7], np.int32), 0, [1])]
    assert pack_batch(steps, block_size=4).logits_indices.tolist() == [0, 1, 2]


def test_embeddings():
    steps = [SequenceStep(np.ones((n, 6), np.float32) * n, 0, [n]) for n in (2, 1)]
    inputs = pack_batch(steps, block_size=4).inputs()
    assert "input_ids" not in inputs
    np.testing.assert_array_equal(inputs["inputs_embeds"], np.repeat([[2.0], [2.0], [1.0]], 6, axis=1))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=6), st.integers(1, 8))
def test_every_token_has_its_own_place(steps, block_size):
    """The rule that the attention operator states, on every token: block and slot are those of its position."""
    next_block, packed = 0, []
    for num_new, num_computed in steps:
        needed = num_blocks_for(num_new + num_computed, block_size)
        packed.append(
            SequenceStep(np.zeros(num_new, np.int32), num_computed, list(range(next_block, next_block + needed)))
        )
        next_block += needed
    batch = pack_batch(packed, block_size)
    places = set()
    for seq_idx, step in enumerate(packed):
        start, end = batch.cu_seqlens[seq_idx : seq_idx + 2]
        assert (end - start, batch.context_lens[seq_idx]) == (len(step.tokens), step.num_computed + len(step.tokens))
        for token in range(start, end):
            index = batch.context_lens[seq_idx] - (end - start) + (token - start)
            assert batch.positions[token] == index
            block = batch.block_table[seq_idx, index // block_size]
            assert block == step.block_ids[index // block_size]
            places.add((block, index % block_size))
    assert len(places) == batch.cu_seqlens[-1] == len(batch.tokens)
