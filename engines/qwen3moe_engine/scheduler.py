"""What runs in the next step.

Owns: the queue, admission, the token budget, chunked prefill. A request's blocks are all reserved when it is admitted,
so a running request can never be without one. Must not know the executor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.request import Request
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class ScheduledRequest:
    """The next `num_new` tokens of a request go through the model."""

    request: Request
    num_new: int

    @property
    def samples(self) -> bool:
        """Whether the step ends at the request's last token, so that its logits give the next one."""
        return self.request.num_computed + self.num_new == self.request.num_tokens


@dataclass(frozen=True)
class StepPlan:
    scheduled: tuple[ScheduledRequest, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new for item in self.scheduled)


class Scheduler:
    """First come, first served. `max_step_tokens` bounds the tokens of a step, `max_seqs` the requests that run."""

    def __init__(self, blocks: BlockManager, max_model_len: int, max_step_tokens: int, max_seqs: int):
        assert max_step_tokens >= max_seqs > 0, (max_step_tokens, max_seqs)
        self.blocks, self.max_model_len = blocks, max_model_len
        self.max_step_tokens, self.max_seqs = max_step_tokens, max_seqs
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Queues a request. Raises InputError if it could never run."""
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """Raises InputError if the request could never run."""
        limit = min(self.max_model_len, self.blocks.num_blocks * self.blocks.block_size)
        if not request.prompt_ids:
            raise InputError(
                "prompt", got="no token", expected="at least one", remedy="give a prompt that is not empty"
            )
        if request.max_tokens > limit:
            got = f"{len(request.prompt_ids)} prompt + {request.params.max_new_tokens} new tokens"
            raise InputError(
                "prompt",
                got=got,
                expected=f"at most {limit} together",
                remedy="shorten the prompt or lower --max-new-tokens",
            )

    def schedule(self) -> StepPlan:
        """Running requests first, in order of arrival, then as many waiting ones as find blocks and budget."""
        budget, scheduled = self.max_step_tokens, []
        for request in self._running:
            num_new = min(request.num_tokens - request.num_computed, budget)
            if num_new > 0:
                scheduled.append(ScheduledRequest(request, num_new))
                budget -= num_new
        while self._waiting and budget > 0 and self._admits(self._waiting[0]):
            request = self._waiting.popleft()
            request.block_ids = self.blocks.allocate(request.max_tokens)
            self._running.append(request)
            num_new = min(request.num_tokens, budget)
            scheduled.append(ScheduledRequest(request, num_new))
            budget -= num_new
        assert scheduled or not self.has_work, "a step without work"
        return StepPlan(tuple(scheduled))

    def finish(self, request: Request) -> None:
        self._running.remove(request)
        self.blocks.release(request.block_ids)
        request.block_ids = []

    def _admits(self, request: Request) -> bool:
        return len(self._running) < self.max_seqs and self.blocks.can_hold(request.max_tokens)


def blocks_needed(requests: list[Request], block_size: int) -> int:
    """Blocks that let all `requests` run at once."""
    return sum(num_blocks_for(request.max_tokens, block_size) for request in requests)
