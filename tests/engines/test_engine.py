"""The generation loop with a fake executor, whose next token is a hash of everything a sequence holds in the cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.request import SamplingParams
from qwen3moe_engine.sampler import sample_greedy
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_plugins.errors import InputError

VOCAB_SIZE, EOS, BLOCK_SIZE, MAX_MODEL_LEN = 13, 5, 4, 48


class FakeExecutor:
    """Stores tokens where a real one stores keys and values, and reads them back through the block table."""

    def __init__(self, num_blocks: int):
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, BLOCK_SIZE, MAX_MODEL_LEN
        self._pool = np.full((num_blocks, BLOCK_SIZE), -1)
        self.step_sizes: list[tuple[int, int]] = []

    def execute(self, batch: Batch) -> np.ndarray:
        self.step_sizes.append((len(batch.tokens), len(batch.context_lens)))
        hashes = np.empty(len(batch.tokens), np.int64)
        for seq_idx, context in enumerate(batch.context_lens):
            start, end = batch.cu_seqlens[seq_idx : seq_idx + 2]
            index = np.arange(context)
            places = batch.block_table[seq_idx, index // BLOCK_SIZE], index % BLOCK_SIZE
            self._pool[tuple(axis[context - (end - start) :] for axis in places)] = batch.tokens[start:end]
            seen = self._pool[places]
            hashes[start:end] = [next_token(seen[: position + 1]) for position in batch.positions[start:end]]
        return np.eye(VOCAB_SIZE, dtype=np.float32)[hashes[batch.logits_indices]]


def next_token(tokens: np.ndarray) -> int:
    weights = np.arange(1, len(tokens) + 1)
    return int((tokens * weights * weights + 3 * weights).sum() % VOCAB_SIZE)


def expected_tokens(prompt: list[int], params: SamplingParams) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + params.max_new_tokens:
        tokens.append(next_token(np.array(tokens)))
        if tokens[-1] == EOS and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


def make_engine(num_blocks: int = 40, max_step_tokens: int = 16, max_seqs: int = 4) -> tuple[Engine, FakeExecutor]:
    executor = FakeExecutor(num_blocks)
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), MAX_MODEL_LEN, max_step_tokens, max_seqs)
    return Engine(executor, scheduler, VOCAB_SIZE, (EOS,)), executor


PROMPTS = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30), min_size=1, max_size=8)
PARAMS = st.builds(SamplingParams, max_new_tokens=st.integers(1, 18), ignore_eos=st.booleans())


@settings(deadline=None)
@given(PROMPTS, PARAMS, st.integers(12, 60), st.integers(1, 20), st.integers(1, 5))
def test_tokens_do_not_depend_on_who_shares_the_batch(prompts, params, num_blocks, max_step_tokens, max_seqs):
    """Whatever the budgets, each request gets what it gets alone; budgets hold and every block comes back."""
    max_step_tokens = max(max_step_tokens, max_seqs)
    engine, executor = make_engine(num_blocks, max_step_tokens, max_seqs)
    completions = engine.generate(prompts, params)
    assert [list(c.token_ids) for c in completions] == [expected_tokens(prompt, params) for prompt in prompts]
    for completion in completions:
        stopped = completion.token_ids[-1] == EOS and not params.ignore_eos
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert all(tokens <= max_step_tokens and seqs <= max_seqs for tokens, seqs in executor.step_sizes)
    assert engine._scheduler.blocks.num_free == num_blocks and not engine._scheduler.has_work


@settings(deadline=None)
@given(PROMPTS, st.lists(st.integers(0, 6), min_size=8, max_size=8))
def test_requests_may_arrive_while_others_run(prompts, steps_between):
    engine, _ = make_engine()
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    requests, finished = [], []
    for prompt, num_steps in zip(prompts, steps_between, strict=False):
        requests.append(engine.add_request(prompt, params))
        for _ in range(num_steps if engine._scheduler.has_work else 0):
            if engine._scheduler.has_work:
                finished += engine.step()
    while engine._scheduler.has_work:
        finished += engine.step()
    assert [request.output_ids for request in requests] == [expected_tokens(prompt, params) for prompt in prompts]
    assert sorted(request.request_id for request in finished) == [request.request_id for request in requests]


def test_every_prompt_is_checked_before_any_runs():
    engine, executor = make_engine()
    for bad, said in (
        ([], "no token"),
        ([VOCAB_SIZE], r"token ids \[13\]"),
        ([-1], "token ids"),
        ([1] * 48, "at most"),
    ):
        with pytest.raises(InputError, match=said):
            engine.generate([[1, 2], bad], SamplingParams(4))
    assert not executor.step_sizes and not engine._scheduler.has_work
    assert engine.generate([[1, 2]], SamplingParams(4))[0].token_ids == tuple(
        expected_tokens([1, 2], SamplingParams(4))
    )


def test_greedy_takes_the_lower_id_of_equals():
    assert sample_greedy(np.array([[0, 3, 3], [2, 1, 2]], np.float32)) == [1, 0]
