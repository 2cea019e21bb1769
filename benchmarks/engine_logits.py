"""Logits of an engine with pseudo-random weights, for engine_reference.py to check: the last of a prompt and those of
the decode steps behind it, with and without CUDA graphs. On as many GPUs as the export is for; with --against, beside
those of another layout.

python benchmarks/engine_logits.py EXPORT -o logits.npz
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.executor_opening import open_executor
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.weights import no_progress

PROMPT, DECODE_STEPS, SEED = 512, 32, 7


def logits_of(executor: Executor, tokens: np.ndarray) -> np.ndarray:
    """[1 + DECODE_STEPS, vocab_size]"""
    blocks = list(range(num_blocks_for(len(tokens), executor.block_size)))
    steps = [(0, PROMPT)] + [(PROMPT + i, PROMPT + i + 1) for i in range(DECODE_STEPS)]
    rows = []
    for start, end in steps:
        batch = pack_batch([SequenceStep(tokens[start:end], start, blocks)], executor.block_size, [0])
        rows.append(executor.execute(batch).rows()[0])
    return np.stack(rows)


def describe(got: np.ndarray, expected: np.ndarray) -> str:
    """Of rows of logits: the least cosine, the relative error, how many have the same best token."""
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    top1 = (got.argmax(1) == expected.argmax(1)).mean()
    return f"cosine at least {cosine.min():.6f}, relative L2 {relative:.5f}, top-1 {top1:.3f}"


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path))
@click.option("--plugins", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Another layout's logits.npz.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(export: Path, plan: Path | None, plugins: Path | None, against: Path | None, output: Path) -> None:
    manifest = load_stages(export)[0].manifest
    rng, vocab_size = np.random.default_rng(SEED), manifest.dims.vocab_size
    tokens = rng.integers(10, vocab_size - 10, PROMPT + DECODE_STEPS, dtype=np.int32)
    results = {}
    for graphs in (False, True):
        options = EngineOptions("tensorrt", plan, random_weights=SEED, cuda_graphs=graphs, plugins=plugins)
        executor = open_executor(options, export, None, 64, no_progress)
        results[graphs] = logits_of(executor, tokens)
        executor.close()
    print(f"{manifest.part.layout}: with CUDA graphs against without: {describe(results[True], results[False])}")
    if against is not None:
        print(f"{manifest.part.layout} against {against.stem}: {describe(results[True], np.load(against)['logits'])}")
    np.savez(output, tokens=tokens, logits=results[True])


if __name__ == "__main__":
    main()
