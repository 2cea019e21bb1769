"""Decode steps and first tokens of a whole engine: scheduler, executor and sampler, by the wall clock.

Owns: what is timed. Must not know which executor runs, nor how figures are shown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.engine import Engine
from qwen3moe_engine.sampling_params import SamplingParams

WARM_UP_STEPS = 4  # the first ones wait for prefill steps that are still in flight
FIRST_TOKEN_REPEATS = 4


@dataclass(frozen=True)
class Times:
    """Milliseconds of several runs of the same thing."""

    milliseconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.milliseconds, percent))

    @property
    def median(self) -> float:
        return self.percentile(50)


class StepClock:
    """Times an engine that nobody else uses, with prompts of random tokens, all different."""

    def __init__(self, engine: Engine, vocab_size: int, max_step_tokens: int, seed: int = 0):
        self._engine, self._vocab_size, self._max_step_tokens = engine, vocab_size, max_step_tokens
        self._rng = np.random.default_rng(seed)

    def decode(self, contexts: Sequence[int], num_steps: int) -> Times:
        """Greedy steps in which sequences, of so many tokens each and a few, get a token each."""
        params = SamplingParams(num_new_tokens(contexts, num_steps, self._max_step_tokens), ignore_eos=True)
        requests = [self._engine.add_request(self._prompt(context), params) for context in contexts]
        try:
            while not all(request.output_ids for request in requests):
                self._engine.step()
            times = [self._time_step() for _ in range(WARM_UP_STEPS + num_steps)]
        finally:
            for request in requests:
                self._engine.abort(request)
        while self._engine.has_work:  # what is in flight would delay the next case
            self._engine.step()
        return Times(tuple(times[WARM_UP_STEPS:]))

    def first_token(self, length: int) -> Times:
        """From a prompt's arrival at an idle engine to its first token."""
        times = []
        for _ in range(FIRST_TOKEN_REPEATS):
            prompt = self._prompt(length)
            start = time.perf_counter()
            self._engine.generate([prompt], SamplingParams(max_new_tokens=1))
            times.append((time.perf_counter() - start) * 1e3)
        return Times(tuple(times))

    def _time_step(self) -> float:
        start = time.perf_counter()
        self._engine.step()
        return (time.perf_counter() - start) * 1e3

    def _prompt(self, length: int) -> list[int]:
        return self._rng.integers(0, self._vocab_size, length).tolist()


def num_new_tokens(contexts: Sequence[int], num_steps: int, max_step_tokens: int) -> int:
    """What `StepClock.decode` has its first sequence make: a token in each step in which the others are prefilled too,
    one for each step on top of that, one in the step that is in flight when the last has been timed, and one to spare,
    so that none ends. Those who decode leave prompts the rest of a step's tokens."""
    num_prefill_steps = -(-sum(contexts) // (max_step_tokens - len(contexts) + 1))
    return num_prefill_steps + WARM_UP_STEPS + num_steps + 3
