"""The generation loop: schedule, pack, execute, sample, until nothing is left.

Owns: requests from arrival to completion. Must not know which executor it drives. Not for several threads at a time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3moe_engine.batch import Batch, lay_out
from qwen3moe_engine.detokenizer import Detokenizer, Vocabulary
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.prompt import Prompt, PromptEncoder
from qwen3moe_engine.request import Completion, Request, check_params, check_token_ids
from qwen3moe_engine.sampler import batch_logprobs, sample_batch
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stats import EngineStats
from qwen3moe_engine.step_plan import StepPlan
from qwen3moe_plugins.errors import InputError


class Engine:
    """Serves requests with `executor`. Tokens at or above vocab_size are refused; text needs a tokenizer, and prompts
    that are not token ids an encoder."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        tokenizer: Vocabulary | None = None,
        encoder: PromptEncoder | None = None,
    ):
        self._executor, self._scheduler, self._tokenizer = executor, scheduler, tokenizer
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._encoder = encoder or PromptEncoder(None, None)
        self._request_ids = itertools.count(1)

    @classmethod
    def from_export(
        cls,
        export: Path | str,
        weights: Path | str | None,
        options: EngineOptions | None = None,
        tokenizer: Path | str | None = None,
    ) -> Engine:
        """Loads the folder `export` with the checkpoint `weights`; tokenizer: a folder, by default the checkpoint's.

        Raises InputError, before it loads anything, for what does not go together."""
        from qwen3moe_engine.opened_export import OpenedExport

        paths = [Path(path) if path is not None else None for path in (weights, tokenizer)]
        return OpenedExport(Path(export), paths[0], options or EngineOptions(), paths[1]).load()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def executor(self) -> Executor:
        return self._executor

    @property
    def max_request_tokens(self) -> int:
        """Of a prompt and its new tokens together."""
        return self._scheduler.max_request_tokens

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of text, chat messages or token ids. Raises InputError. May be called from any thread."""
        return self._encoder.encode(prompt)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Completions of the prompts, in their order; params: for all of them, or for each. Raises InputError before
        any is run."""
        if isinstance(prompts, str):  # whose characters are strings too
            raise InputError("prompts", got="one", expected="a list of them", remedy="put it into a list")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = [self.make_request(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
        self._run(requests)
        return [request.completion() for request in requests]

    def make_request(self, prompt: Prompt, params: SamplingParams, priority: int = 0) -> Request:
        """A request that has arrived and is not queued yet. Raises InputError. May be called from any thread."""
        token_ids = self.encode(prompt)
        check_token_ids(token_ids, self._vocab_size)
        check_params(params, self._vocab_size, has_tokenizer=self._tokenizer is not None)
        detokenizer = Detokenizer(self._tokenizer, params.stop) if self._tokenizer is not None else None
        request = Request(next(self._request_ids), token_ids, params.seeded(), priority, detokenizer=detokenizer)
        self._scheduler.check(request)
        return request

    def add(self, request: Request) -> None:
        """Queues a request; `step` moves it on. Raises QueueFullError if too many wait."""
        self._scheduler.add(request)

    def add_request(self, prompt: Prompt, params: SamplingParams, priority: int = 0) -> Request:
        """Makes and queues one. Raises InputError or QueueFullError."""
        request = self.make_request(prompt, params, priority)
        self.add(request)
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
        tokens = sample_batch(logits, sampling, self._eos_token_ids)
        logprobs = batch_logprobs(logits, sampling, tokens)
        finished: list[Request] = []
        for request, token, logprob in zip(sampling, tokens, logprobs, strict=True):
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
