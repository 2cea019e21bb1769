"""Where the time of a step goes: TensorRT's own times of layers, added up by kind. Pseudo-random weights.

TensorRT times each layer between events, which costs small layers a few microseconds each; so the sum is above the
step's time, which is printed beside it.

python benchmarks/engine_profile.py EXPORT --plan PLAN --plugins FOLDER
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.weights import no_progress

SEED, REPEATS = 7, 5
# sequences, new tokens of each, tokens before them
STEPS = ((1, 1, 1024), (8, 1, 1024), (64, 1, 1024), (256, 1, 1024), (1, 2048, 0), (1, 8192, 0))


def make_batch(rng: np.random.Generator, vocab_size: int, block_size: int, count: int, new: int, old: int) -> Batch:
    per_seq = num_blocks_for(new + old, block_size)
    steps = [
        SequenceStep(rng.integers(0, vocab_size, new, dtype=np.int32), old, range(i * per_seq, (i + 1) * per_seq))
        for i in range(count)
    ]
    return pack_batch(steps, block_size, list(range(count)))


def kind_of(layer: str) -> str:
    """The layer's name without numbers and paths."""
    return re.sub(r"\d+", "#", layer)[:90]


def table(executor: TensorRTExecutor, batch: Batch) -> None:
    executor.execute(batch).draw([])
    start = time.perf_counter()
    for _ in range(REPEATS):
        executor.execute(batch).draw([])
    whole = (time.perf_counter() - start) / REPEATS * 1e3
    totals: dict[str, list[float]] = defaultdict(list)
    for _ in range(REPEATS):
        for name, ms in executor.profile(batch):
            totals[kind_of(name)].append(ms / REPEATS)
    print("| layers | calls | us each | ms |\n|---|---|---|---|")
    for kind, times in sorted(totals.items(), key=lambda item: -sum(item[1])):
        if sum(times) > 0.001:
            print(f"| {kind} | {len(times) // REPEATS} | {np.mean(times) * REPEATS * 1e3:.1f} | {sum(times):.3f} |")
    print(f"| sum | | | {sum(map(sum, totals.values())):.3f} |\n| the step, no graph | | | {whole:.3f} |\n", flush=True)


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path), required=True)
@click.option("--plugins", type=click.Path(path_type=Path))
def main(export: Path, plan: Path, plugins: Path | None) -> None:
    manifest, rng = load_manifest(export), np.random.default_rng(SEED)
    with TensorRTExecutor(
        export,
        manifest,
        plan,
        None,
        TensorRTConfig(num_blocks=9216, random_weights=RandomWeights(SEED), cuda_graphs=False),
        no_progress,
        plugins,
    ) as executor:
        for count, new, old in STEPS:
            print(f"### {count} x {new} new tokens behind {old}\n")
            table(executor, make_batch(rng, manifest.dims.vocab_size, executor.block_size, count, new, old))


if __name__ == "__main__":
    main()
