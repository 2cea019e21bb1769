"""An executor for tests of everything above it: its logits follow from what it reads through the block table.

Where a real one stores keys and values it stores a digest of the token and of all digests before it, as the keys and
values of deeper layers depend on everything before them. So a block that belongs to another sequence, to another prefix
or to an earlier step changes every token from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.logit_adjustments import adjust_logits
from qwen3moe_engine.logits import Draw, HostLogits
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.sampling_rule import draw

VOCAB_SIZE, EOS = 61, 5
_MODULUS = 1_000_003


class FakeExecutor:
    """on_execute: called in the middle of a step. reduce: what a group of ranks makes of the logits of each."""

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int):
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self._pool = np.full((num_blocks, block_size), -1)
        self.step_sizes: list[tuple[int, int]] = []
        self.on_execute: Callable[[], None] = lambda: None
        self.reduce: Callable[[np.ndarray], np.ndarray] = lambda logits: logits

    def execute(self, batch: Batch) -> HostLogits:
        """Every sequence sees the pool as the steps before left it, and its own new tokens."""
        self.step_sizes.append((len(batch.tokens), len(batch.context_lens)))
        self.on_execute()
        results = [self._compute(batch, seq_idx) for seq_idx in range(len(batch.context_lens))]
        for places, digests, _ in results:
            self._pool[places] = digests
        next_tokens = np.concatenate([np.array(tokens, np.int64) for _, _, tokens in results])
        return HostLogits(self.reduce(logits_for(next_tokens[batch.logits_indices])))

    def close(self) -> None:
        pass

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


class OverlappingFakeExecutor(FakeExecutor):
    """Runs a step that was launched as late as it can: when somebody asks for its tokens, or behind it starts one that
    needs them. Until then it holds arrays that the caller must not change."""

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int):
        super().__init__(num_blocks, block_size, max_model_len)
        self.in_flight: list[FakeDrawn] = []
        self._last_tokens: list[int] = []
        self.num_carried = self.num_overlapped = 0

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> FakeDrawn:
        assert len(self.in_flight) <= 1, "two steps are in flight"
        self.num_overlapped += len(self.in_flight)
        self.in_flight.append(FakeDrawn(self, batch, list(draws)))
        return self.in_flight[-1]

    def execute(self, batch: Batch) -> HostLogits:
        while self.in_flight:
            self.run_oldest()
        return super().execute(self._resolve(batch))

    def run_oldest(self) -> None:
        step = self.in_flight[0]
        tokens = super().execute(self._resolve(step.batch)).draw(step.draws)
        del self.in_flight[0]
        step.result = self._last_tokens = tokens

    def _resolve(self, batch: Batch) -> Batch:
        tokens = batch.tokens.copy()
        self.num_carried += len(batch.carried)
        for place, row in batch.carried:
            assert tokens[place] == 0, "a token that is known is not carried"
            tokens[place] = self._last_tokens[row]
        return replace(batch, tokens=tokens, carried=())


@dataclass
class FakeDrawn:
    executor: OverlappingFakeExecutor
    batch: Batch
    draws: list[Draw]
    result: list[int] | None = None

    def tokens(self) -> list[int]:
        while self.result is None:
            self.executor.run_oldest()
        return self.result


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
        alone = Request(0, tuple(prompt), params, output_ids=output)
        logits = adjust_logits(logits_for(np.array(following[-1])), alone, (EOS,))
        output.append(draw(logits, params, len(output)) if params.temperature else int(logits.argmax()))
        tokens = output[-1:]
        if output[-1] == EOS and not params.ignore_eos:
            break
    return output
