"""Random lives of a server, for any executor: who arrives when, with what, and who is cancelled when.

A schedule is a few small integers, so that hypothesis can shrink it; prompts are made of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import strategies as st

from qwen3moe_engine.engine import Engine
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import QueueFullError, Scheduler


@dataclass(frozen=True)
class Arrival:
    """A prompt of num_shared tokens, the same for all of a `prefix`, and num_own of its own.

    Prefix 1 is prefix 0 with another first token, and prefix 2 repeats four tokens: equal blocks behind unequal ones.

    seed: of a request that draws its tokens; None for one that takes the likeliest. judged: the host has a part in
    sampling it: a penalty, log-probabilities.
    cancelled_at: the step in which it is cancelled, if it has not finished by then; `midway`, while that step runs.
    """

    step: int
    prefix: int
    num_shared: int
    num_own: int
    max_new_tokens: int
    priority: int
    ignore_eos: bool
    cancelled_at: int | None
    midway: bool
    seed: int | None
    judged: bool

    def prompt(self, index: int, vocab_size: int) -> list[int]:
        shared = [self.prefix, *((i * i * 7 + i) % vocab_size for i in range(1, self.num_shared))]
        if self.prefix == 2:
            shared = [3, 1, 4, 2] * self.num_shared
        own = [(index * 29 + i * 11 + 3) % vocab_size for i in range(self.num_own)]
        return [*shared[: self.num_shared], *own] or [index]

    @property
    def params(self) -> SamplingParams:
        host = {"frequency_penalty": 1.5, "logprobs": 1} if self.judged else {}
        temperature = 0.0 if self.seed is None else 1.0
        return SamplingParams(self.max_new_tokens, self.ignore_eos, temperature=temperature, seed=self.seed, **host)


@dataclass(frozen=True)
class Schedule:
    """spare_blocks: of the pool beyond what its largest request needs."""

    arrivals: tuple[Arrival, ...]
    spare_blocks: int
    max_step_tokens: int
    max_seqs: int
    max_waiting: int

    @property
    def max_tokens(self) -> int:
        """Of its largest request."""
        return max(max(1, item.num_shared + item.num_own) + item.max_new_tokens for item in self.arrivals)


def schedules(
    max_prompt: int, max_new_tokens: int, min_new_tokens: int = 1, min_arrivals: int = 2, max_arrivals: int = 8
) -> st.SearchStrategy[Schedule]:
    arrival = st.builds(
        Arrival,
        step=st.integers(0, 12) | st.just(0),
        prefix=st.integers(0, 2),
        num_shared=st.integers(0, max_prompt // 2) | st.just(8),
        num_own=st.integers(0, max_prompt // 2) | st.just(0),
        max_new_tokens=st.integers(min_new_tokens, max_new_tokens),
        priority=st.sampled_from((0, 0, 0, 1, -1)),
        ignore_eos=st.booleans(),
        cancelled_at=st.none() | st.none() | st.integers(0, 24),
        midway=st.booleans(),
        seed=st.none() | st.integers(0, 3),
        judged=st.sampled_from((False, False, False, False, True)),
    )
    return st.builds(
        Schedule,
        arrivals=st.lists(arrival, min_size=min_arrivals, max_size=max_arrivals).map(tuple),
        spare_blocks=st.sampled_from((0, 1, 2, 3, 5, 8)),
        max_step_tokens=st.integers(1, 24),
        max_seqs=st.sampled_from((1, 2, 3, 4, 6)),
        max_waiting=st.sampled_from((1, 4, 8, 8)),
    )


@dataclass
class Driver:
    """Lives a schedule step by step. on_midway: how to be called in the middle of a step."""

    engine: Engine
    scheduler: Scheduler
    schedule: Schedule
    vocab_size: int
    call_midway: Callable[[Callable[[], None]], None]

    def run(self) -> list[Request | None]:
        """The requests by arrival, each finished or aborted; None for those that found the queue full.

        Checks the scheduler's invariants after every step, that a stream of each request's tokens would have none lost
        or repeated, that nothing finishes twice, and that nothing is left."""
        self._requests: dict[int, Request | None] = {}
        self._streams: dict[int, list[int]] = {}
        self._finished: list[Request] = []
        for step in itertools.count():
            self._arrive(step)
            self._cancel(step, midway=False)
            self.call_midway(lambda step=step: self._cancel(step, midway=True))
            self._finished += self.engine.step()
            self.scheduler.check_invariants()
            self._stream()
            if len(self._requests) == len(self.schedule.arrivals) and not self.engine.has_work:
                break
        self._check_end()
        return [self._requests[index] for index in range(len(self.schedule.arrivals))]

    def _arrive(self, step: int) -> None:
        for index, arrival in enumerate(self.schedule.arrivals):
            if arrival.step == step:
                prompt = arrival.prompt(index, self.vocab_size)
                with refused_if(self.scheduler.is_full):
                    self._requests[index] = None
                    self._requests[index] = self.engine.add_request(prompt, arrival.params, arrival.priority)

    def _cancel(self, step: int, midway: bool) -> None:
        for index, arrival in enumerate(self.schedule.arrivals):
            request = self._requests.get(index)
            if request is not None and (arrival.cancelled_at, arrival.midway) == (step, midway):
                self.engine.abort(request)
                assert not request.block_ids, "an aborted request holds blocks"

    def _stream(self) -> None:
        """A step adds at most one token to what a client has seen."""
        for request in filter(None, self._requests.values()):
            seen = self._streams.setdefault(request.request_id, [])
            assert request.output_ids[: len(seen)] == seen and len(request.output_ids) <= len(seen) + 1
            seen += request.output_ids[len(seen) :]

    def _check_end(self) -> None:
        done = [request for request in self._requests.values() if request and request.finish_reason != "abort"]
        assert sorted(r.request_id for r in self._finished) == sorted(r.request_id for r in done)
        assert all(request.finish_reason in ("stop", "length") for request in done)
        for request in filter(None, self._requests.values()):
            assert len(request.logprobs) == (0 if request.params.logprobs is None else len(request.output_ids))
        stats = self.engine.stats()
        assert (stats.num_waiting, stats.num_running, stats.num_blocks_used) == (0, 0, 0), stats


@contextmanager
def refused_if(is_full: bool) -> Iterator[None]:
    try:
        yield
    except QueueFullError:
        assert is_full
    else:
        assert not is_full
