"""Figures of an engine's throughput are counts of what its executor saw."""

from __future__ import annotations

import pytest
from fake_executor import VOCAB_SIZE, FakeExecutor, OverlappingFakeExecutor

from qwen3moe_engine.bench.throughput import measure_throughput
from qwen3moe_engine.bench.workload import LengthRange, RandomPrompts, make_workload
from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.scheduler import Scheduler

MAX_SEQS, MAX_STEP_TOKENS, BLOCK_SIZE = 4, 16, 4


@pytest.mark.parametrize("kind", [FakeExecutor, OverlappingFakeExecutor])
@pytest.mark.parametrize("num_blocks", [200, 14], ids=["room for all", "preemption"])
def test_figures_are_what_the_executor_saw(num_blocks, kind):
    executor = kind(num_blocks, BLOCK_SIZE, max_model_len=48)
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), 48, MAX_STEP_TOKENS, MAX_SEQS)
    engine = Engine(executor, scheduler, VOCAB_SIZE, eos_token_ids=())
    prompts = RandomPrompts(LengthRange(3, 12), VOCAB_SIZE, prefix_len=8)
    warmup, items = (make_workload(prompts, LengthRange(4, 20), 12, seed) for seed in (1, 2))
    measure_throughput(engine, warmup, MAX_SEQS, MAX_STEP_TOKENS)
    num_before = len(executor.step_sizes)
    figures = measure_throughput(engine, items, MAX_SEQS, MAX_STEP_TOKENS)

    steps = executor.step_sizes[num_before:]
    assert figures.num_steps == len(steps)
    assert figures.mean_step_tokens == sum(tokens for tokens, _ in steps) / len(steps)
    assert figures.mean_step_seqs == sum(seqs for _, seqs in steps) / len(steps)
    assert figures.seq_occupancy == figures.mean_step_seqs / 4 and figures.token_occupancy < 1
    assert figures.num_output_tokens == sum(item.max_tokens for item in items)
    assert figures.num_prompt_tokens == sum(len(item.prompt) for item in items)
    assert figures.num_prefix_hits > 0 and (figures.num_preemptions > 0) == (num_blocks == 14)
    assert figures.output_throughput * figures.duration == pytest.approx(figures.num_output_tokens)
    assert figures.mean_step * figures.num_steps == pytest.approx(figures.duration * 1e3)
