"""A schedule lived with a real executor, where sums take another order in another batch.

Each row of logits follows from the request's own tokens, so these are right if and only if each is what the row of the
request alone gives. A first difference counts as equal where the row cannot tell the two apart: its two best logits are
closer than the executor's tolerance, or the random number lies as close to the drawn token's share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from schedules import Driver, Schedule

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.executor import Executor, OverlappingExecutor
from qwen3moe_engine.logit_adjustments import adjust_logits
from qwen3moe_engine.logits import Draw, Drawn, Logits
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_rule import draw, philox
from qwen3moe_engine.scheduler import Scheduler

VOCAB_SIZE, EOS = 2048, (2045, 2047)  # of the trained model


@dataclass
class Interruptible:
    """An executor that lets somebody in before it computes."""

    inner: Executor
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self):
        self.num_blocks, self.block_size = self.inner.num_blocks, self.inner.block_size
        self.max_model_len = self.inner.max_model_len

    def execute(self, batch: Batch) -> Logits:
        self.let_in()
        return self.inner.execute(batch)

    def let_in(self) -> None:
        while self.callbacks:
            self.callbacks.pop()()

    def close(self) -> None:
        """The executor is the caller's."""


class OverlappingInterruptible(Interruptible):
    """The same of one that takes a step while the one before runs."""

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> Drawn:
        assert isinstance(self.inner, OverlappingExecutor)
        self.let_in()
        return self.inner.launch(batch, draws)


def live(schedule: Schedule, executor: Executor, tolerance: float, overlap: bool = False) -> Counter:
    """What happened. tolerance: of a logit of `executor`, between one batch and another."""
    num_blocks = num_blocks_for(schedule.max_tokens, executor.block_size) + schedule.spare_blocks
    blocks = BlockManager(min(num_blocks, executor.num_blocks), executor.block_size)
    max_step_tokens = max(schedule.max_step_tokens, schedule.max_seqs)
    scheduler = Scheduler(blocks, executor.max_model_len, max_step_tokens, schedule.max_seqs, schedule.max_waiting)
    outer = OverlappingInterruptible(executor) if overlap else Interruptible(executor)
    engine = Engine(outer, scheduler, VOCAB_SIZE, EOS)
    requests = Driver(engine, scheduler, schedule, VOCAB_SIZE, outer.callbacks.append).run()
    served = [request for request in requests if request is not None]
    stats = engine.stats()
    return Counter(
        schedules=1,
        requests=len(served),
        tokens=sum(len(request.output_ids) for request in served),
        near_ties=sum(leaves_at_near_tie(executor, request, tolerance) for request in served),
        preemptions=stats.num_preemptions,
        evictions=stats.num_evictions,
        prefix_hits=stats.num_prefix_hits,
    )


def leaves_at_near_tie(executor: Executor, request: Request, tolerance: float) -> bool:
    """Whether the request's tokens leave those of its own rows, which must be at a near-tie; prints it."""
    if not request.output_ids:
        return False
    logits, params = logits_alone(executor, request), request.params
    for at, row in enumerate(logits):
        before = replace(request, output_ids=request.output_ids[:at])
        logits[at] = adjust_logits(row, before, EOS)
    given = [draw(row, params, at) if params.temperature else int(row.argmax()) for at, row in enumerate(logits)]
    wrong = np.flatnonzero(np.array(given) != request.output_ids)
    if not len(wrong):
        return False
    first = int(wrong[0])
    distance = (drawn_distance if params.temperature else greedy_distance)(logits[first], request, first)
    print(f"near-tie: token {first} of {request}: {request.output_ids[first]} for {given[first]}, {distance:.2e}")
    assert distance <= tolerance, f"{request}: token {first} is not the one its row gives, by {distance}"
    return True


def logits_alone(executor: Executor, request: Request) -> np.ndarray:
    """Of a prefill that has the pool to itself, one row for each token the request generated: what it follows from."""
    tokens = np.array([*request.prompt_ids, *request.output_ids[:-1]], np.int32)
    blocks = list(range(num_blocks_for(len(tokens), executor.block_size)))
    logits = executor.execute(pack_batch([SequenceStep(tokens, 0, blocks)], executor.block_size))
    return logits.rows()[len(request.prompt_ids) - 1 :]


def greedy_distance(row: np.ndarray, request: Request, at: int) -> float:
    """How far the token's logit is below the best."""
    return float(row.max() - row[request.output_ids[at]])


def drawn_distance(row: np.ndarray, request: Request, at: int) -> float:
    """How much logits must move at least for the token to be drawn: logits that move by d at most move the share of
    the tokens before one by a factor of exp(2 d) at most."""
    params, token = request.params, request.output_ids[at]
    assert params.seed is not None and (params.top_k, params.top_p, params.min_p) == (0, 1.0, 0.0)
    powers = np.exp(np.float64(row - row.max()) / params.temperature)
    shares = np.concatenate([[0.0], np.cumsum(powers / powers.sum())])
    random = philox(params.seed, at) / 2**64
    low, high = shares[token], shares[token + 1]
    if low <= random < high:
        return 0.0
    near, beyond = (low, random) if random < low else (random, high)
    return params.temperature / 2 * min(math.log(near / max(beyond, 1e-300)), 99.0)
