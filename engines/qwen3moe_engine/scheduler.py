"""What runs in the next step.

Owns: the queues, admission, the token budget, chunked prefill, preemption. Must not know the executor.

A request is admitted when its tokens find blocks; those that it generates find theirs one by one. If none is left
the last in order of service gives up its own and is computed again later. The first in order is never stopped, and fits
the pool alone, so there is always progress.

`schedule` may be called while the step before is in flight: then a request's last token may be one that nobody knows
yet. A block that changes hands may still be written by that step, but whoever gets it does so in a later one.
"""

from __future__ import annotations

from qwen3moe_engine.block_manager import ROOT_HASH, BlockManager, hash_block, num_blocks_for
from qwen3moe_engine.request import Request
from qwen3moe_engine.request_queue import RequestQueue
from qwen3moe_engine.stats import EngineStats
from qwen3moe_engine.step_plan import ScheduledRequest, StepPlan
from qwen3moe_plugins.errors import InputError


class QueueFullError(RuntimeError):
    """As many requests wait as may; a later try may succeed."""

    def __init__(self, max_waiting: int):
        super().__init__(
            f"request queue: got {max_waiting} waiting requests, expected fewer; try again later or raise max_waiting"
        )


class Scheduler:
    """max_step_tokens: of a step. max_seqs, max_waiting: requests that run, and that wait for the first time."""

    def __init__(
        self,
        blocks: BlockManager,
        max_model_len: int,
        max_step_tokens: int,
        max_seqs: int,
        max_waiting: int = 1024,
    ):
        # so that a prefill has a token to go on with even if all others decode
        assert max_step_tokens >= max_seqs > 0, (max_step_tokens, max_seqs)
        assert max_waiting > 0, max_waiting
        self.blocks, self.max_model_len = blocks, max_model_len
        self.max_step_tokens, self.max_seqs, self.max_waiting = max_step_tokens, max_seqs, max_waiting
        self._waiting, self._running = RequestQueue(), RequestQueue()
        self._ending = RequestQueue()  # whose last token is in flight; they hold nothing
        self._num_prompt_tokens = self._num_prefix_hits = self._num_preemptions = 0
        self._num_steps = self._num_step_seqs = self._num_step_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._ending)

    @property
    def is_full(self) -> bool:
        """Whether `add` would raise QueueFullError."""
        return len(self._waiting) >= self.max_waiting

    @property
    def max_request_tokens(self) -> int:
        """Of a prompt and its new tokens together."""
        return min(self.max_model_len, self.blocks.num_blocks * self.blocks.block_size)

    def check(self, request: Request) -> None:
        """Raises InputError if the request could never run."""
        limit = self.max_request_tokens
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

    def add(self, request: Request) -> None:
        """Queues a request. Raises InputError if it could never run, QueueFullError if it cannot wait."""
        self.check(request)
        if self.is_full:
            raise QueueFullError(self.max_waiting)
        self._waiting.add(request)

    def schedule(self) -> StepPlan:
        """Running requests in order of service, then as many waiting ones as find blocks and budget."""
        preempted = self._make_room()
        scheduled = self._continue_running()
        self._admit_waiting(scheduled, self.max_step_tokens - sum(item.num_new for item in scheduled))
        assert scheduled or not (self._waiting or self._running), "a step without work"
        return StepPlan(tuple(scheduled), tuple(preempted))

    def commit(self, plan: StepPlan) -> None:
        """Notes that the plan's step was started: to later steps its keys and values are in the cache, and they may
        share full blocks. A request whose last token it gives needs nothing more."""
        self._num_steps += 1
        self._num_step_seqs += len(plan.scheduled)
        self._num_step_tokens += plan.num_tokens
        block_size = self.blocks.block_size
        for request, start, num_new, samples, _ in plan.scheduled:
            if request.finish_reason is not None:  # aborted while the step ran: its blocks are no longer its own
                continue
            request.num_computed = end = start + num_new
            if end // block_size > start // block_size:
                self._register(request, start // block_size, min(end, request.num_known) // block_size)
            if samples:
                request.num_pending += 1
                if request.num_tokens == request.max_tokens:
                    self._stop(request)
                    self._ending.add(request)

    def take(self, request: Request) -> None:
        """Notes that the oldest of its pending tokens is known, and may have ended it."""
        request.num_pending -= 1
        num_known, block_size = request.num_known, self.blocks.block_size
        if num_known % block_size == 0 and num_known <= request.num_computed:
            self._register(request, num_known // block_size - 1, num_known // block_size)
        if request.finish_reason is not None:
            self._forget(request)

    def abort(self, request: Request) -> None:
        """Forgets a request wherever it is; nothing happens if it has finished."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "abort"
        self._forget(request)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running) + len(self._ending),
            num_blocks=self.blocks.num_blocks,
            num_blocks_used=self.blocks.num_used,
            num_blocks_cached=self.blocks.num_cached,
            num_prompt_tokens=self._num_prompt_tokens,
            num_prefix_hits=self._num_prefix_hits,
            num_preemptions=self._num_preemptions,
            num_evictions=self.blocks.num_evictions,
            num_steps=self._num_steps,
            num_step_seqs=self._num_step_seqs,
            num_step_tokens=self._num_step_tokens,
        )

    def check_invariants(self) -> None:
        """For tests, between steps: who waits or is done holds nothing, only blocks whose tokens are known and computed
        can be shared, and two steps at most are in flight."""
        self.blocks.check_invariants(request.block_ids for request in self._running)
        assert len(self._running) <= self.max_seqs
        for request in (*self._waiting, *self._running, *self._ending):
            assert 0 <= request.num_pending <= 2 and request.finish_reason is None, request
        for request in (*self._waiting, *self._ending):
            assert not request.block_ids and not request.num_computed, request
        for request in self._ending:
            assert request.num_pending and request.num_tokens == request.max_tokens, request
        for request in self._running:
            assert request.num_computed < request.num_tokens < request.max_tokens, request
            num_full = min(request.num_computed, request.num_known) // self.blocks.block_size
            num_held = len(request.block_ids)
            assert num_blocks_for(request.num_computed, self.blocks.block_size) <= num_held, request
            assert not any(map(self.blocks.is_registered, request.block_ids[num_full:])), request

    def _make_room(self) -> list[Request]:
        """A block for every running request whose last token needs one. Returns the requests it took blocks from."""
        preempted: list[Request] = []
        block_size = self.blocks.block_size
        for request in self._running:
            num_tokens = request.num_tokens
            if num_tokens <= len(request.block_ids) * block_size:
                continue
            num_missing = num_blocks_for(num_tokens, block_size) - len(request.block_ids)
            while num_missing > self.blocks.num_free:
                victim = self._running.last
                self._preempt(victim)
                preempted.append(victim)
                if victim is request:
                    return preempted
            request.block_ids.extend(self.blocks.allocate(num_missing))
        return preempted

    def _preempt(self, request: Request) -> None:
        """Back to where its arrival puts it in the queue, with all its tokens, to be computed again."""
        self._stop(request)
        request.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.add(request)

    def _continue_running(self) -> list[ScheduledRequest]:
        """A token for everyone who decodes, then chunks of prompts in order of service from what is left."""
        left = [request.num_tokens - request.num_computed for request in self._running]
        budget = self.max_step_tokens - left.count(1)
        scheduled = []
        for request, num_left in zip(self._running, left, strict=True):
            if num_left == 1:
                scheduled.append(ScheduledRequest(request, request.num_computed, 1, True))
            elif budget > 0:
                num_new = min(num_left, budget)
                budget -= num_new
                scheduled.append(ScheduledRequest(request, request.num_computed, num_new, num_new == num_left))
        return scheduled

    def _admit_waiting(self, scheduled: list[ScheduledRequest], budget: int) -> None:
        """Appends chunks of the first to wait. A block stays free for each request that grows, lest what is admitted be
        preempted at once."""
        if not self._waiting or budget <= 0 or len(self._running) >= self.max_seqs:
            return
        num_growing = sum(map(self._grows, self._running))
        while self._waiting and budget > 0 and len(self._running) < self.max_seqs:
            request = self._waiting.first
            num_growing += self._grows(request)
            if not self._admit(request, num_reserved=num_growing):
                return
            num_left, start = request.num_tokens - request.num_computed, request.num_computed
            num_new = min(num_left, budget)
            budget -= num_new
            scheduled.append(ScheduledRequest(request, start, num_new, num_new == num_left, num_cached=start))

    def _admit(self, request: Request, num_reserved: int) -> bool:
        """Starts a request behind what the prefix cache has of it, if there are blocks. Its last token is computed in
        any case: somebody has to have the logits."""
        num_spare = self.blocks.num_free - num_reserved
        if num_spare <= 0:
            return False
        block_size = self.blocks.block_size
        shared = self.blocks.find_prefix(self._hashes(request, (request.num_tokens - 1) // block_size))
        num_missing = num_blocks_for(request.num_tokens, block_size) - len(shared)
        if num_missing + self.blocks.num_idle(shared) > num_spare:
            return False
        self.blocks.share(shared)
        request.block_ids.extend([*shared, *self.blocks.allocate(num_missing)])
        request.num_computed = len(shared) * block_size
        self._waiting.remove(request)
        self._running.add(request)
        if not request.num_preemptions:
            request.start(request.num_computed)
            self._num_prompt_tokens += len(request.prompt_ids)
            self._num_prefix_hits += request.num_computed
        return True

    def _grows(self, request: Request) -> bool:
        """Whether it may need more blocks than its known tokens do."""
        size = self.blocks.block_size
        return num_blocks_for(request.num_tokens, size) < num_blocks_for(request.max_tokens, size)

    def _register(self, request: Request, start: int, end: int) -> None:
        """Blocks start to end - 1 of the request are full and computed."""
        hashes = self._hashes(request, end)
        for index in range(start, end):
            self.blocks.register(request.block_ids[index], hashes[index])

    def _hashes(self, request: Request, num_blocks: int) -> list[bytes]:
        """Of its first blocks; each is made once."""
        hashes, size = request.block_hashes, self.blocks.block_size
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else ROOT_HASH
            hashes.append(hash_block(parent, request.tokens(index * size, (index + 1) * size)))
        return hashes[:num_blocks]

    def _forget(self, request: Request) -> None:
        """Wherever it is; a token to come may have been its last after it was preempted."""
        if request in self._running:
            self._stop(request)
        else:
            (self._ending if request in self._ending else self._waiting).remove(request)

    def _stop(self, request: Request) -> None:
        """Frees what a running request holds; its blocks stay in the prefix cache."""
        self._running.remove(request)
        self.blocks.release(request.block_ids)
        del request.block_ids[:]
        request.num_computed = 0
