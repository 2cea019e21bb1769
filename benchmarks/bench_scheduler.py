"""Host time of a step by the number of running requests, and what the prefix cache spares; with an executor that does
nothing. Needs neither a GPU nor a model.

    python benchmarks/bench_scheduler.py

A step is scheduling, packing and bookkeeping: what the runtime does while the GPU runs the step before. One at a time
it is what the runtime adds to the model's own time, with greedy sampling over a vocabulary of 8. Goals: 0.3 ms at 64
requests, 1 ms at 256.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Sequence

import numpy as np

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.logits import Draw, HostLogits
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler

BLOCK_SIZE, VOCAB_SIZE, MAX_MODEL_LEN = 16, 8, 4096
PROMPT, NEW_TOKENS, SHARED_PREFIX = 1024, 400, 2048
MAX_STEP_TOKENS = 2048
GOALS_MS = {64: 0.3, 256: 1.0}


class NullDrawn:
    def __init__(self, count: int):
        self._tokens = [3] * count

    def tokens(self) -> list[int]:
        return self._tokens


class NullExecutor:
    """The same logits whatever comes."""

    block_size, max_model_len = BLOCK_SIZE, MAX_MODEL_LEN

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._logits = np.eye(1, VOCAB_SIZE, 3, dtype=np.float32).repeat(1024, axis=0)
        self.num_tokens = 0

    def execute(self, batch: Batch) -> HostLogits:
        self.num_tokens += len(batch.tokens)
        return HostLogits(self._logits[: len(batch.logits_indices)])

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> NullDrawn:
        self.num_tokens += len(batch.tokens)
        return NullDrawn(len(draws))

    def close(self) -> None:
        """Holds nothing."""


def make_engine(num_blocks: int, max_seqs: int, overlap: bool = False) -> tuple[Engine, NullExecutor]:
    executor = NullExecutor(num_blocks)
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), MAX_MODEL_LEN, MAX_STEP_TOKENS, max_seqs)
    return Engine(executor, scheduler, VOCAB_SIZE, eos_token_ids=(), overlap=overlap), executor


def random_prompts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(1).integers(0, VOCAB_SIZE, (count, length)).tolist()


def step_ms(num_requests: int, num_blocks: int, overlap: bool) -> tuple[np.ndarray, Engine]:
    """Times of steps in which all requests decode, with contexts of PROMPT to PROMPT + NEW_TOKENS."""
    engine, _ = make_engine(num_blocks, num_requests, overlap)
    requests = [
        engine.add_request(prompt, SamplingParams(NEW_TOKENS)) for prompt in random_prompts(num_requests, PROMPT)
    ]
    times: list[float] = []
    while not any(request.finish_reason for request in requests):
        are_decoding = all(request.output_ids for request in requests)
        start = time.perf_counter()
        engine.step()
        if are_decoding:
            times.append((time.perf_counter() - start) * 1e3)
    return np.array(times), engine


def print_steps() -> None:
    print("| running requests | steps | median ms | p99 ms | goal ms |\n|---|---|---|---|---|")
    for num_requests, overlap in itertools.product((1, 64, 256), (True, False)):
        num_blocks = num_requests * num_blocks_for(PROMPT + NEW_TOKENS, BLOCK_SIZE)
        times, engine = step_ms(num_requests, num_blocks, overlap)
        assert engine.stats().num_preemptions == 0
        kind, goal = "overlap" if overlap else "one at a time", GOALS_MS.get(num_requests, "")
        print(f"| {num_requests} | {kind} | {np.median(times):.3f} | {np.percentile(times, 99):.3f} | {goal} |")


def print_overcommitted() -> None:
    """Twice the requests that the pool holds in full: admission by what is free, preemption, computing again."""
    num_requests, num_blocks = 512, 256 * num_blocks_for(PROMPT + NEW_TOKENS, BLOCK_SIZE)
    engine, executor = make_engine(num_blocks, max_seqs=num_requests)
    for prompt in random_prompts(num_requests, PROMPT):
        engine.add_request(prompt, SamplingParams(NEW_TOKENS))
    times, running = [], []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - start) * 1e3)
        running.append(engine.stats().num_running)
    again = executor.num_tokens / (num_requests * (PROMPT + NEW_TOKENS - 1)) - 1
    print(
        f"\n{num_requests} requests, blocks for 256: {np.mean(running):.0f} run on average, "
        f"{engine.stats().num_preemptions} preemptions, {again:.1%} of all tokens computed again, "
        f"median {np.median(times):.3f} ms a step, p99 {np.percentile(times, 99):.3f} ms."
    )


def print_mixed_step() -> None:
    """A whole budget of prompt tokens: admission, hashing, allocation, packing."""
    engine, executor = make_engine(4096, max_seqs=64)
    for prompt in random_prompts(16, 2040):
        engine.add_request(prompt, SamplingParams(NEW_TOKENS))
    times = []
    for _ in range(16):
        start = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"\nA step of {executor.num_tokens // 16} tokens, nearly all of a new prompt: {np.median(times):.3f} ms.")


def print_prefix() -> None:
    engine, executor = make_engine(1024, max_seqs=4)
    shared = random_prompts(1, SHARED_PREFIX)[0]
    print(f"\n| prompt of {SHARED_PREFIX} shared + 32 own tokens | tokens computed | new blocks | steps | host ms |")
    print("|---|---|---|---|---|")
    for number, name in enumerate(("first", "second")):
        before, num_before = engine.stats(), executor.num_tokens
        num_steps, start = 0, time.perf_counter()
        request = engine.add_request([*shared, *([number] * 32)], SamplingParams(2))
        while not request.output_ids:
            engine.step()
            num_steps += 1
        seconds = time.perf_counter() - start
        stats = engine.stats()
        num_new = stats.num_blocks_used + stats.num_blocks_cached - before.num_blocks_cached
        print(f"| {name} | {executor.num_tokens - num_before} | {num_new} | {num_steps} | {seconds * 1e3:.2f} |")
        engine.step()
    print(f"\nPrefix hits: {engine.stats().num_prefix_hits} of {engine.stats().num_prompt_tokens} prompt tokens.")


if __name__ == "__main__":
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, one thread\n")
    print_steps()
    print_mixed_step()
    print_overcommitted()
    print_prefix()
