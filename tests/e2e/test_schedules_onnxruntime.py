"""Random lives of a server with ONNX Runtime on the trained model, in fp32: each request gets what it gets alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from schedule_check import live
from schedules import schedules

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.weights import no_progress

NUM_SCHEDULES, MAX_PROMPT, MAX_NEW_TOKENS, BLOCK_SIZE, NUM_BLOCKS = 50, 30, 18, 4, 24
# fp32's rounding moves a logit of this model by 1e-5; a gap smaller than this is no verdict on any implementation.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def executor(export, checkpoint) -> OnnxRuntimeExecutor:
    config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
    return OnnxRuntimeExecutor(export, load_manifest(export), open_checkpoint(checkpoint), config, no_progress)


def test_tokens_do_not_depend_on_who_shares_pool_and_batch(executor, capsys):
    totals: Counter = Counter()

    @settings(max_examples=NUM_SCHEDULES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS, min_new_tokens=10, min_arrivals=5))
    def run(schedule):
        totals.update(live(schedule, executor, TOLERANCE))

    run()
    with capsys.disabled():
        print(f"\n{dict(totals)}")
    assert totals["schedules"] == NUM_SCHEDULES
    assert min(totals[event] for event in ("preemptions", "evictions", "prefix_hits")) > 0
