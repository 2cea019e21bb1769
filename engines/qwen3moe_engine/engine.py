"""The generation loop: schedule, pack, execute, sample, until nothing is left.

Owns: requests from arrival to completion, and the steps in flight: where the executor can take a step while the one
before runs, two. Must not know which executor it drives. Not for several threads at a time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from qwen3moe_engine.detokenizer import Detokenizer, Vocabulary
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor import Executor, OverlappingExecutor
from qwen3moe_engine.prompt import Prompt, PromptEncoder
from qwen3moe_engine.request import Completion, Request, check_params, check_token_ids
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stats import EngineStats
from qwen3moe_engine.step_in_flight import StepInFlight, start_step
from qwen3moe_plugins.errors import InputError


class Engine:
    """Serves requests with `executor`. Tokens at or above vocab_size are refused; text needs a tokenizer, and prompts
    that are not token ids an encoder. overlap: start a step before the tokens of the one before are known, where the
    executor can."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        tokenizer: Vocabulary | None = None,
        encoder: PromptEncoder | None = None,
        overlap: bool = True,
    ):
        self._executor, self._scheduler, self._tokenizer = executor, scheduler, tokenizer
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._encoder = encoder or PromptEncoder(None, None)
        self._request_ids = itertools.count(1)
        self._in_flight: deque[StepInFlight] = deque()
        self._max_in_flight = 2 if overlap and isinstance(executor, OverlappingExecutor) else 1

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
        """Whether a step has anything to do: for requests, or to take in one that nobody needs any more."""
        return self._scheduler.has_work or bool(self._in_flight)

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
        """Waits for one pass through the model, and has the next one started by then if that needs none of its tokens
        on the host. Returns the requests it finished."""
        while self._may_start() and (plan := self._scheduler.schedule()).scheduled:
            ahead = self._in_flight[-1] if self._in_flight else None
            self._in_flight.append(start_step(plan, ahead, self._executor, self._max_in_flight > 1))
            self._scheduler.commit(plan)
        return self._take_in() if self._in_flight else []

    def _may_start(self) -> bool:
        """Whether a step may be started behind those in flight."""
        if not self._in_flight:
            return True
        return len(self._in_flight) < self._max_in_flight and self._in_flight[-1].drawn is not None

    def _take_in(self) -> list[Request]:
        """What the oldest step in flight gives. Tokens of requests that have ended are superfluous: of those that were
        aborted, and those whose last token the step before gave."""
        step = self._in_flight[0]
        sampled = step.sample(self._eos_token_ids)  # if this raises, the step is still to be taken in
        self._in_flight.popleft()
        finished: list[Request] = []
        for request, (token, logprob) in zip(step.requests, sampled, strict=True):
            if request.finish_reason is not None:
                continue
            request.append(token, self._eos_token_ids, logprob)
            self._scheduler.take(request)
            if request.finish_reason is not None:
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
            if not self._scheduler.has_work:
                self._in_flight.clear()
            raise
