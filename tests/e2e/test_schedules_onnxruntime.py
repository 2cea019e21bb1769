"""Random lives of a server with ONNX Runtime on the trained model, in fp32: each request gets what it gets alone.

Sums of fp32 take another order in another batch. So a first difference counts as equal where the two best logits of the
request alone are closer than TIE, and what follows it is not compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from schedules import Driver, Schedule, schedules

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.logits import Logits
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_rule import draw
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.weights import no_progress

NUM_SCHEDULES, MAX_PROMPT, MAX_NEW_TOKENS, BLOCK_SIZE, NUM_BLOCKS = 50, 30, 18, 4, 24
VOCAB_SIZE, EOS = 2048, (2045, 2047)
TIE = 1e-3


@dataclass
class Interruptible:
    """An executor that lets somebody in before it computes."""

    inner: OnnxRuntimeExecutor
    callbacks: list = field(default_factory=list)

    def __post_init__(self):
        self.num_blocks, self.block_size = self.inner.num_blocks, self.inner.block_size
        self.max_model_len = self.inner.max_model_len

    def execute(self, batch: Batch) -> Logits:
        while self.callbacks:
            self.callbacks.pop()()
        return self.inner.execute(batch)


@pytest.fixture(scope="module")
def executor(export, checkpoint) -> OnnxRuntimeExecutor:
    config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
    return OnnxRuntimeExecutor(export, load_manifest(export), open_checkpoint(checkpoint), config, no_progress)


def logits_alone(executor: OnnxRuntimeExecutor, request: Request) -> np.ndarray:
    """Of a prefill that has the pool to itself, one row for each token the request generated: what it follows from."""
    tokens = np.array([*request.prompt_ids, *request.output_ids[:-1]], np.int32)
    blocks = list(range(num_blocks_for(len(tokens), BLOCK_SIZE)))
    logits = executor.execute(pack_batch([SequenceStep(tokens, 0, blocks)], BLOCK_SIZE))
    return logits.rows()[len(request.prompt_ids) - 1 :]


def leaves_at_near_tie(executor: OnnxRuntimeExecutor, request: Request) -> bool:
    """Whether the request's tokens leave those alone, which must be at a near-tie; drawn tokens never do.

    Each row follows from the request's own tokens, so these are right if and only if each is what its row gives."""
    if not request.output_ids:
        return False
    logits = logits_alone(executor, request)
    params = request.params
    given = [draw(row, params, at) if params.temperature else row.argmax() for at, row in enumerate(logits)]
    wrong = np.flatnonzero(np.array(given) != request.output_ids)
    if not len(wrong):
        return False
    assert not params.temperature, f"{request}: token {wrong[0]} is not the one its seed draws"
    best = np.sort(logits[wrong[0]])[-2:]
    assert best[1] - best[0] < TIE, f"{request}: token {wrong[0]} is not the best, by {best[1] - best[0]}"
    return True


def live(schedule: Schedule, executor: OnnxRuntimeExecutor) -> Counter:
    num_blocks = min(num_blocks_for(schedule.max_tokens, BLOCK_SIZE) + schedule.spare_blocks, NUM_BLOCKS)
    blocks = BlockManager(num_blocks, BLOCK_SIZE)
    max_step_tokens = max(schedule.max_step_tokens, schedule.max_seqs)
    scheduler = Scheduler(blocks, executor.max_model_len, max_step_tokens, schedule.max_seqs, schedule.max_waiting)
    outer = Interruptible(executor)
    engine = Engine(outer, scheduler, VOCAB_SIZE, EOS)
    requests = Driver(engine, scheduler, schedule, VOCAB_SIZE, outer.callbacks.append).run()
    served = [request for request in requests if request is not None]
    stats = engine.stats()
    return Counter(
        schedules=1,
        requests=len(served),
        tokens=sum(len(request.output_ids) for request in served),
        near_ties=sum(leaves_at_near_tie(executor, request) for request in served),
        preemptions=stats.num_preemptions,
        evictions=stats.num_evictions,
        prefix_hits=stats.num_prefix_hits,
    )


def test_tokens_do_not_depend_on_who_shares_pool_and_batch(executor, capsys):
    totals: Counter = Counter()

    @settings(max_examples=NUM_SCHEDULES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS, min_new_tokens=10, min_arrivals=5))
    def run(schedule):
        totals.update(live(schedule, executor))

    run()
    with capsys.disabled():
        print(f"\n{dict(totals)}")
    assert totals["schedules"] == NUM_SCHEDULES
    assert min(totals[event] for event in ("preemptions", "evictions", "prefix_hits")) > 0
