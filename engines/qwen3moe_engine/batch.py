"""The arrays of one step: ragged sequences packed into the graph's batch inputs.

Owns: the layout of a packed step. Must not know requests, the scheduler or the executor.

Legend: T tokens of all sequences, B sequences, H hidden_size, N rows of logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.block_manager import num_blocks_for


@dataclass(frozen=True)
class SequenceStep:
    """New tokens of one sequence, ids [n] or embeddings [n, H], behind `num_computed` in the cache. n may be 0."""

    tokens: NDArray
    num_computed: int
    block_ids: list[int]


@dataclass(frozen=True)
class Batch:
    """Named as the graph's inputs; all int32, tokens as embeddings excepted."""

    tokens: NDArray  # [T] or [T, H]
    positions: NDArray[np.int32]  # [T]
    block_table: NDArray[np.int32]  # [B, max_blocks]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    context_lens: NDArray[np.int32]  # [B]
    logits_indices: NDArray[np.int32]  # [N]

    def inputs(self) -> dict[str, NDArray]:
        """By name of the graph's input."""
        name = "input_ids" if self.tokens.ndim == 1 else "inputs_embeds"
        rest = ("positions", "block_table", "cu_seqlens", "context_lens", "logits_indices")
        return {name: self.tokens} | {field: getattr(self, field) for field in rest}


def pack_batch(steps: list[SequenceStep], block_size: int, logits_of: list[int] | None = None) -> Batch:
    """Packs `steps`; logits are asked for the last token of the sequences `logits_of`, or for every token if None."""
    lengths = [len(step.tokens) for step in steps]
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    contexts = [step.num_computed + length for step, length in zip(steps, lengths, strict=True)]
    used = [num_blocks_for(context, block_size) for context in contexts]
    block_table = np.zeros((len(steps), max(1, *used)), np.int32)
    for row, step, num_used in zip(block_table, steps, used, strict=True):
        row[:num_used] = step.block_ids[:num_used]
    positions = [np.arange(step.num_computed, context) for step, context in zip(steps, contexts, strict=True)]
    every_token = np.arange(cu_seqlens[-1])
    return Batch(
        tokens=np.concatenate([step.tokens for step in steps]),
        positions=np.concatenate(positions).astype(np.int32),
        block_table=block_table,
        cu_seqlens=cu_seqlens,
        context_lens=np.array(contexts, np.int32),
        logits_indices=(every_token if logits_of is None else cu_seqlens[1:][logits_of] - 1).astype(np.int32),
    )


def pad_batch(batch: Batch, num_seqs: int, max_blocks: int) -> Batch:
    """The same decode step (a token and a row of logits for each sequence) with `num_seqs` sequences and a block table
    of `max_blocks` columns: the new sequences are empty, and their tokens padding."""

    def padded(array: NDArray, num_rows: int, value: int = 0) -> NDArray:
        missing = [(0, num_rows - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, missing, constant_values=value)

    columns = ((0, 0), (0, max_blocks - batch.block_table.shape[1]))
    return Batch(
        tokens=padded(batch.tokens, num_seqs),
        positions=padded(batch.positions, num_seqs),
        block_table=padded(np.pad(batch.block_table, columns), num_seqs),
        cu_seqlens=padded(batch.cu_seqlens, num_seqs + 1, batch.cu_seqlens[-1]),
        context_lens=padded(batch.context_lens, num_seqs),
        logits_indices=padded(batch.logits_indices, num_seqs),
    )
