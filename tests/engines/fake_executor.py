"""An executor for tests of everything above it: its logits follow from what it reads through the block table.

Where a real one stores keys and values it stores a digest of the token and of all digests before it, as the keys and
values of deeper layers depend on everything before them. So a block that belongs to another sequence, to another prefix
or to an earlier step changes every token from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.logits import HostLogits
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.sampling_rule import draw

VOCAB_SIZE, EOS = 61, 5
_MODULUS = 1_000_003


class FakeExecutor:
    """on_execute: called in the middle of a step."""

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int):
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self._pool = np.full((num_blocks, block_size), -1)
        self.step_sizes: list[tuple[int, int]] = []
        self.on_execute: Callable[[], None] = lambda: None

    def execute(self, batch: Batch) -> HostLogits:
        """Every sequence sees the pool as the steps before left it, and its own new tokens."""
        self.step_sizes.append((len(batch.tokens), len(batch.context_lens)))
        self.on_execute()
        results = [self._compute(batch, seq_idx) for seq_idx in range(len(batch.context_lens))]
        for places, digests, _ in results:
            self._pool[places] = digests
        next_tokens = np.concatenate([tokens for _, _, tokens in results])
        return HostLogits(logits_for(next_tokens[batch.logits_indices]))

    def _compute(self, batch: Batch, seq_idx: int) -> tuple[tuple[np.ndarray, np.ndarray], list[int], list[int]]:
        """Where its new digests go, these, and the token that follows each."""
        start, end = batch.cu_seqlens[seq_idx : seq_idx + 2]
        context = batch.context_lens[seq_idx]
        index = np.arange(context)
        assert (batch.positions[start:end] == index[context - (end - start) :]).all()
        assert batch.block_table.shape[1] >= num_blocks_for(int(context), self.block_size)
        blocks, slots = batch.block_table[seq_idx, index // self.block_size], index % self.block_size
        num_old = context - (end - start)
        digests, following = extend_digests(
            self._pool[blocks[:num_old], slots[:num_old]].tolist(), batch.tokens[start:end].tolist()
        )
        return (blocks[num_old:], slots[num_old:]), digests, following


def logits_for(tokens: np.ndarray) -> np.ndarray:
    """Rows [vocab_size] whose best token is the one given; at temperature 1 it is drawn about every other time."""
    return np.float32(4.0) * np.eye(VOCAB_SIZE, dtype=np.float32)[tokens]


def extend_digests(before: Sequence[int], tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    """The digests of `tokens` behind those `before`, and the token that follows each."""
    digests, following = [], []
    total = sum((index + 1) * digest for index, digest in enumerate(before))
    for index, token in enumerate(tokens, start=len(before)):
        digest = (total * 31 + token * 7919 + index) % _MODULUS
        total += (index + 1) * digest
        digests.append(digest)
        following.append(total % _MODULUS % VOCAB_SIZE)
    return digests, following


def expected_tokens(prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """Of a request that runs alone."""
    digests: list[int] = []
    output: list[int] = []
    tokens = list(prompt)
    while len(output) < params.max_new_tokens:
        new, following = extend_digests(digests, tokens)
        digests += new
        output.append(draw(logits_for(np.array(following[-1])), params, len(output)))
        tokens = output[-1:]
        if output[-1] == EOS and not params.ignore_eos:
            break
    return output
