"""The generation loop: schedule, pack, execute, sample, until nothing is left.

Owns: requests from arrival to completion. Must not know which executor it drives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.detokenizer import Detokenizer, Vocabulary
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.request import Completion, Request, check_params, check_token_ids
from qwen3moe_engine.sampler import batch_logprobs, sample_batch
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler, StepPlan


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

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """Completions of the prompts (token ids), in their order. Raises InputError before any is run."""
        requests = [self._make_request(prompt, params) for prompt in prompts]
        for request in requests:
            self._scheduler.check(request)
        for request in requests:
            self._scheduler.add(request)
        while self._scheduler.has_work:
            self.step()
        return [request.completion() for request in requests]

    def add_request(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        """Queues a prompt; `step` moves it on. Raises InputError."""
        request = self._make_request(prompt, params)
        self._scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """One pass through the model for everything that is scheduled. Returns the requests it finished."""
        plan = self._scheduler.schedule()
        logits = self._executor.execute(_pack(plan, self._executor.block_size))
        sampling = [item.request for item in plan.scheduled if item.samples]
        tokens = sample_batch(logits, sampling, self._eos_token_ids)
        logprobs = batch_logprobs(logits, sampling, tokens)
        for item in plan.scheduled:
            item.request.num_computed += item.num_new
        for request, token, logprob in zip(sampling, tokens, logprobs, strict=True):
            request.append(token, self._eos_token_ids, logprob)
        finished = [item.request for item in plan.scheduled if item.request.finish_reason]
        for request in finished:
            self._scheduler.finish(request)
        return finished

    def _make_request(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        check_token_ids(prompt, self._vocab_size)
        check_params(params, self._vocab_size, has_tokenizer=self._tokenizer is not None)
        self._num_requests += 1
        detokenizer = Detokenizer(self._tokenizer, params.stop) if self._tokenizer is not None else None
        return Request(self._num_requests, tuple(prompt), params.seeded(), detokenizer=detokenizer)


def _pack(plan: StepPlan, block_size: int) -> Batch:
    steps = []
    for item in plan.scheduled:
        request, start = item.request, item.request.num_computed
        tokens = np.array(request.tokens(start, start + item.num_new), np.int32)
        steps.append(SequenceStep(tokens, start, request.block_ids))
    sampling = [index for index, item in enumerate(plan.scheduled) if item.samples]
    return pack_batch(steps, block_size, sampling or [0])  # a graph has at least one row of logits, wanted or not
