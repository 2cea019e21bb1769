"""A step from its plan to its tokens.

Owns: packing a plan, with the tokens that only the step before it has, and where a step's tokens come from. Must not
know the scheduler's queues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.batch import Batch, Carried, lay_out
from qwen3moe_engine.executor import Executor, OverlappingExecutor
from qwen3moe_engine.logits import Draw, Drawn, Logits
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampler import Sampled, draws_of, needs_logits, sample_batch
from qwen3moe_engine.step_plan import StepPlan


@dataclass(frozen=True)
class StepInFlight:
    """requests: those that get a token, by row of logits, as are `draws`. drawn: the tokens, where the executor draws
    them behind the step; None where the host has a part in it, or no other step starts meanwhile, which has `logits`.
    """

    requests: list[Request]
    draws: list[Draw]
    drawn: Drawn | None = None
    logits: Logits | None = None

    def sample(self, eos_token_ids: tuple[int, ...]) -> list[Sampled]:
        """The token of each request. Waits for the step."""
        if self.drawn is not None:
            return [(token, None) for token in self.drawn.tokens()]
        assert self.logits is not None
        return sample_batch(self.logits, self.requests, self.draws, eos_token_ids)


def start_step(plan: StepPlan, ahead: StepInFlight | None, executor: Executor, overlap: bool) -> StepInFlight:
    """Starts the plan's step behind the one `ahead`, of which it may need tokens."""
    requests = [item.request for item in plan.scheduled if item.samples]
    draws, batch = draws_of(requests), pack(plan, ahead.requests if ahead else [], executor.block_size)
    if not overlap or any(map(needs_logits, requests)):
        return StepInFlight(requests, draws, logits=executor.execute(batch))
    assert isinstance(executor, OverlappingExecutor)
    return StepInFlight(requests, draws, drawn=executor.launch(batch, draws))


def pack(plan: StepPlan, ahead: list[Request], block_size: int) -> Batch:
    """The plan's inputs. ahead: requests whose last tokens are still being drawn, by row."""
    row_of = {request: row for row, request in enumerate(ahead)}
    requests, starts, num_new, samples, _ = zip(*plan.scheduled, strict=True)
    token_ids: list[int] = []
    carried: list[Carried] = []
    for request, start, count in zip(requests, starts, num_new, strict=True):
        token_ids += request.tokens(start, start + count)
        if start + count > request.num_known:
            carried.append((len(token_ids), row_of[request]))
            token_ids.append(0)
    return lay_out(
        tokens=np.array(token_ids, np.int32),
        num_new=num_new,
        num_computed=starts,
        block_ids=[request.block_ids for request in requests],
        block_size=block_size,
        logits_of=np.flatnonzero(samples) if any(samples) else [0],  # a graph has a row of logits, wanted or not
        carried=carried,
    )
