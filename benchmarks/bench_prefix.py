"""What the prefix cache spares: time to first token and KV blocks, with a prefix of 2048 tokens that prompts share.

    qwen3moe-export onnx tests/data/qwen3moe-tiny -o export
    python benchmarks/bench_prefix.py export tests/data/qwen3moe-tiny

Runs on ONNX Runtime. A prompt is a shared prefix and 32 tokens of its own, all random. Figures are medians over several
prefixes, none of which was seen before.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import onnxruntime

from qwen3moe_engine import Engine, EngineOptions, SamplingParams

SHARED, OWN, NUM_TOGETHER = 2048, 32, 8
NEW_TOKENS = 128  # so that all are there at the same time: the prefills of 8 take 65 steps
NUM_PREFIXES, BLOCK_SIZE = 5, 16
VOCAB_SIZE = 2045  # the special tokens are behind
LENGTH = SHARED + OWN + NEW_TOKENS


@dataclass(frozen=True)
class Served:
    """first_token: ms until the last of the requests has one. num_computed: prompt tokens. num_blocks: in use at the
    most, by all together; num_shared: blocks found in the cache, counted for each request."""

    first_token: float
    num_computed: int
    num_blocks: int
    num_shared: int


def serve(engine: Engine, prompts: Sequence[Sequence[int]]) -> Served:
    before, num_blocks = engine.stats(), 0
    requests = [engine.add_request(prompt, SamplingParams(NEW_TOKENS, ignore_eos=True)) for prompt in prompts]
    while engine.has_work:
        engine.step()
        num_blocks = max(num_blocks, engine.stats().num_blocks_used)
    first_tokens = [timing.first_token for request in requests if (timing := request.timing())]
    assert len(first_tokens) == len(prompts) and engine.stats().num_preemptions == 0
    num_hits = engine.stats().num_prefix_hits - before.num_prefix_hits
    return Served(max(first_tokens) * 1e3, sum(map(len, prompts)) - num_hits, num_blocks, num_hits // BLOCK_SIZE)


def prompts_of(rng: np.random.Generator, count: int) -> list[list[int]]:
    """With a prefix in common."""
    prefix = rng.integers(0, VOCAB_SIZE, SHARED).tolist()
    return [prefix + rng.integers(0, VOCAB_SIZE, OWN).tolist() for _ in range(count)]


def print_table(title: str, rows: dict[str, Sequence[Served]]) -> None:
    """Medians. The time is that of the last request where there are several."""
    print(f"| {title} | ms to first token | tokens computed | blocks in use | found in the cache |")
    print("|---|---|---|---|---|")
    for name, served in rows.items():
        first_token, *counts = np.median([astuple(item) for item in served], axis=0)
        print(f"| {name} | {first_token:.0f} | {' | '.join(f'{count:.0f}' for count in counts)} |")


def print_in_turn(engine: Engine, rng: np.random.Generator) -> None:
    """Two requests with the same prefix, one after the other."""
    pairs = [[serve(engine, [prompt]) for prompt in prompts_of(rng, 2)] for _ in range(NUM_PREFIXES)]
    first, second = zip(*pairs, strict=True)
    print_table(f"a prompt of {SHARED} shared + {OWN} own tokens", {"first time": first, "second time": second})


def print_together(engine: Engine, rng: np.random.Generator) -> None:
    """Requests at the same time: each with a prefix of its own, and all with one that was seen before."""
    own, shared = [], []
    for _ in range(2):
        own.append(serve(engine, [prompts_of(rng, 1)[0] for _ in range(NUM_TOGETHER)]))
        first, *others = prompts_of(rng, NUM_TOGETHER + 1)
        serve(engine, [first])
        shared.append(serve(engine, others))
    rows = {"each with its own prefix": own, "all with one seen before": shared}
    print()
    print_table(f"{NUM_TOGETHER} such prompts together, times of the last", rows)


def main() -> None:
    export, weights = sys.argv[1:]
    rng = np.random.default_rng(1)
    print(f"ONNX Runtime {onnxruntime.__version__}, {platform.machine()}, {BLOCK_SIZE} tokens a block, 256 a step\n")
    # Pools just large enough: this executor writes its whole pool in each step
    print_in_turn(Engine.from_export(export, weights, EngineOptions(kv_tokens=2 * LENGTH)), rng)
    print_together(Engine.from_export(export, weights, EngineOptions(kv_tokens=(NUM_TOGETHER + 1) * LENGTH)), rng)


if __name__ == "__main__":
    main()
