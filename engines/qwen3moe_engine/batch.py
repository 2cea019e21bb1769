"""The arrays of one step: ragged sequences packed into the graph's batch inputs.

Owns: the layout of a packed step. Must not know requests, the scheduler or the executor.

Legend: T tokens of all sequences, B sequences, H hidden_size, N rows of logits.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.block_manager import num_blocks_for


@dataclass(frozen=True)
class SequenceStep:
    """New tokens of one sequence, ids [n] or embeddings [n, H], behind `num_computed` in the cache. n may be 0."""

    tokens: NDArray
    num_computed: int
    block_ids: Sequence[int]


Carried = tuple[int, int]  # a place among a step's tokens, and the row of the step before whose drawn token goes there


@dataclass(frozen=True)
class Batch:
    """Named as the graph's inputs; all int32, tokens as embeddings excepted.

    carried: tokens that are not known yet, by ascending place, where `tokens` holds a 0."""

    tokens: NDArray  # [T] or [T, H]
    positions: NDArray[np.int32]  # [T]
    block_table: NDArray[np.int32]  # [B, max_blocks]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    context_lens: NDArray[np.int32]  # [B]
    logits_indices: NDArray[np.int32]  # [N]
    carried: Sequence[Carried] = field(default=(), kw_only=True)

    def inputs(self) -> dict[str, NDArray]:
        """By name of the graph's input."""
        name = "input_ids" if self.tokens.ndim == 1 else "inputs_embeds"
        rest = ("positions", "block_table", "cu_seqlens", "context_lens", "logits_indices")
        return {name: self.tokens} | {field: getattr(self, field) for field in rest}


def pack_batch(steps: list[SequenceStep], block_size: int, logits_of: list[int] | None = None) -> Batch:
    """Packs `steps`; logits are asked for the last token of the sequences `logits_of`, or for every token if None."""
    return lay_out(
        tokens=np.concatenate([step.tokens for step in steps]),
        num_new=[len(step.tokens) for step in steps],
        num_computed=[step.num_computed for step in steps],
        block_ids=[step.block_ids for step in steps],
        block_size=block_size,
        logits_of=logits_of,
    )


def lay_out(
    tokens: NDArray,
    num_new: Sequence[int],
    num_computed: Sequence[int],
    block_ids: Sequence[Sequence[int]],
    block_size: int,
    logits_of: Sequence[int] | NDArray[np.int64] | None,
    carried: Sequence[Carried] = (),
) -> Batch:
    """`pack_batch` on columns: tokens [T] or [T, H], the rest by sequence. Hundreds of sequences cost a loop over block
    tables and no other; a table that is an array of int32 is copied without a look at its numbers."""
    lengths = np.array(num_new, np.int32)
    cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    contexts = lengths + np.array(num_computed, np.int32)
    used = num_blocks_for(contexts, block_size)
    flat = array("i")
    for ids, num_used in zip(block_ids, used.tolist(), strict=True):
        flat.extend(ids[:num_used])
    block_table = np.zeros((len(lengths), max(1, used.max())), np.int32)
    block_table[np.arange(block_table.shape[1]) < used[:, None]] = flat
    every_token = np.arange(cu_seqlens[-1], dtype=np.int32)
    return Batch(
        tokens=tokens,
        positions=every_token + np.repeat(contexts - cu_seqlens[1:], lengths),
        block_table=block_table,
        cu_seqlens=cu_seqlens,
        context_lens=contexts,
        logits_indices=every_token if logits_of is None else cu_seqlens[1:][logits_of] - 1,
        carried=carried,
    )


def pad_batch(batch: Batch, num_tokens: int, num_seqs: int, max_blocks: int) -> Batch:
    """The same step (a row of logits for each sequence) with `num_tokens` tokens, `num_seqs` sequences and a block
    table of `max_blocks` columns: the new tokens are padding, and the new sequences empty."""

    def padded(array: NDArray, *shape: int, value: int = 0) -> NDArray:
        result = np.full(shape, value, array.dtype)  # a tenth of the time of np.pad, which every step would wait for
        result[tuple(slice(size) for size in array.shape)] = array
        return result

    return Batch(
        tokens=padded(batch.tokens, num_tokens, *batch.tokens.shape[1:]),
        positions=padded(batch.positions, num_tokens),
        block_table=padded(batch.block_table, num_seqs, max_blocks),
        cu_seqlens=padded(batch.cu_seqlens, num_seqs + 1, value=batch.cu_seqlens[-1]),
        context_lens=padded(batch.context_lens, num_seqs),
        logits_indices=padded(batch.logits_indices, num_seqs),
        carried=batch.carried,
    )
