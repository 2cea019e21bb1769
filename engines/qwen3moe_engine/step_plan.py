"""The decision of a scheduler: what goes through the model in one step.

Owns: nothing but the values. Must not know how they came about, nor how they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qwen3moe_engine.request import Request


class ScheduledRequest(NamedTuple):  # hundreds are made each step, in a third of a dataclass's time
    """Tokens start to start + num_new - 1 of a request, of which the last may be one that a step in flight gives.

    samples: they end at its last token, so that its logits give the next one. num_cached: tokens that the prefix cache
    spared it as it was admitted by this step.
    """

    request: Request
    start: int
    num_new: int
    samples: bool
    num_cached: int = 0


@dataclass(frozen=True)
class StepPlan:
    """preempted: requests that were running, and gave up their blocks to be computed again later."""

    scheduled: tuple[ScheduledRequest, ...]
    preempted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new for item in self.scheduled)
