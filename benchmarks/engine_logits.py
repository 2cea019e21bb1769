"""Logits of a plan with pseudo-random weights, for engine_reference.py to check: the last of a prompt and those of the
decode steps behind it, with and without CUDA graphs.

python benchmarks/engine_logits.py EXPORT --plan PLAN --plugins FOLDER -o logits.npz
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.weights import no_progress

PROMPT, DECODE_STEPS, SEED = 512, 32, 7


def logits_of(executor: TensorRTExecutor, tokens: np.ndarray) -> np.ndarray:
    """[1 + DECODE_STEPS, vocab_size]"""
    blocks = list(range(num_blocks_for(len(tokens), executor.block_size)))
    steps = [(0, PROMPT)] + [(PROMPT + i, PROMPT + i + 1) for i in range(DECODE_STEPS)]
    rows = []
    for start, end in steps:
        batch = pack_batch([SequenceStep(tokens[start:end], start, blocks)], executor.block_size, [0])
        rows.append(executor.execute(batch).rows()[0])
    return np.stack(rows)


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path), required=True)
@click.option("--plugins", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(export: Path, plan: Path, plugins: Path | None, output: Path) -> None:
    manifest = load_manifest(export)
    tokens = np.random.default_rng(SEED).integers(
        10, manifest.dims.vocab_size - 10, PROMPT + DECODE_STEPS, dtype=np.int32
    )
    results = {}
    for cuda_graphs in (False, True):
        config = TensorRTConfig(num_blocks=64, random_seed=SEED, cuda_graphs=cuda_graphs)
        with TensorRTExecutor(export, manifest, plan, None, config, no_progress, plugins) as executor:
            results[cuda_graphs] = logits_of(executor, tokens)
            print(f"{executor.device.name}: weights {executor.load_report}, CUDA graphs {cuda_graphs}", flush=True)
    same = "the same bits" if (results[False] == results[True]).all() else "other bits"
    print(
        f"logits with CUDA graphs: {same} as without, largest difference {np.abs(results[False] - results[True]).max()}"
    )
    np.savez(output, tokens=tokens, logits=results[True])


if __name__ == "__main__":
    main()
