"""The generation loop: schedule, pack, execute, sample, until nothing is left.

Owns: requests from arrival to completion. Must not know which executor it drives. Not for several threads at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from qwen3moe_engine.batch import Batch, lay_out
from qwen3moe_engine.detokenizer import Detokenizer, Vocabulary
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.request import Completion, Request, check_params, check_token_ids
from qwen3moe_engine.sampler import sample_batch
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stats import EngineStats
from qwen3moe_engine.step_plan import StepPlan


class Engine:
    """Serves requests with `executor`. Tokens at or above vocab_size are refused; text needs a tokenizer."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        tokenizer: Vocabulary | None = None,
    ):
        self._executor, self._scheduler, self._tokenizer = executor, scheduler, tokenizer
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._num_requests = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """Completions of the prompts (token ids), in their order. Raises InputError before any is run."""
        requests = [self._make_request(prompt, params) for prompt in prompts]
        for request in requests:
            self._scheduler.check(request)
        self._run(requests)
        return [request.completion() for request in requests]

    def add_request(self, prompt: Sequence[int], params: SamplingParams, priority: int = 0) -> Request:
        """Queues a prompt; `step` moves it on. Raises InputError, or QueueFullError if too many wait."""
        request = self._make_request(prompt, params, priority)
        self._scheduler.add(request)
        return request

    def abort(self, request: Request) -> None:
        """Frees what the request holds, at once and wherever it is; no step returns it any more."""
        self._scheduler.abort(request)

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def step(self) -> list[Request]:
        """One pass through the model for everything that is scheduled. Returns the requests it finished."""
        plan = self._scheduler.schedule()
        if not plan.scheduled:
            return []
        logits = self._executor.execute(_pack(plan, self._executor.block_size))
        self._scheduler.commit(plan)
        sampling = [item.request for item in plan.scheduled if item.samples]
        finished: list[Request] = []
        for request, (token, logprob) in zip(
            sampling, sample_batch(logits, sampling, self._eos_token_ids), strict=True
        ):
            if request.finish_reason is not None:  # aborted while the step ran
                continue
            request.append(token, self._eos_token_ids, logprob)
            if request.finish_reason is not None:
                self._scheduler.finish(request)
                finished.append(request)
        return finished

    def _run(self, requests: list[Request]) -> None:
        """Until all are finished, feeding them as the queue has room. An error leaves none of them behind."""
        arriving = deque(requests)
        try:
            while arriving or self.has_work:
                while arriving and not self._scheduler.is_full:
                    self._scheduler.add(arriving.popleft())
                self.step()
        except BaseException:
            for request in requests[: len(requests) - len(arriving)]:
                self.abort(request)
            raise

    def _make_request(self, prompt: Sequence[int], params: SamplingParams, priority: int = 0) -> Request:
        check_token_ids(prompt, self._vocab_size)
        check_params(params, self._vocab_size, has_tokenizer=self._tokenizer is not None)
        self._num_requests += 1
        detokenizer = Detokenizer(self._tokenizer, params.stop) if self._tokenizer is not None else None
        return Request(self._num_requests, tuple(prompt), params.seeded(), priority, detokenizer=detokenizer)


def _pack(plan: StepPlan, block_size: int) -> Batch:
    items = plan.scheduled
    token_ids: list[int] = []
    for item in items:
        token_ids += item.request.tokens(item.start, item.start + item.num_new)
    sampling = [index for index, item in enumerate(items) if item.samples]
    return lay_out(
        tokens=np.array(token_ids, np.int32),
        num_new=[item.num_new for item in items],
        num_computed=[item.start for item in items],
        block_ids=[item.request.block_ids for item in items],
        block_size=block_size,
        logits_of=sampling or [0],  # a graph has at least one row of logits, wanted or not
    )
