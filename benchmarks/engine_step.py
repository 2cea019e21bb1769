"""Build, load and step times of an engine with pseudo-random weights, and its logits for a reference to check.

python benchmarks/engine_step.py EXPORT --plugins FOLDER --tensorrt 8 --logits logits.npz
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.tensorrt.build import build_plan
from qwen3moe_engine.tensorrt.cuda import free_memory
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.tensorrt.flavour import load_tensorrt
from qwen3moe_engine.tensorrt.plan import Limits, save_plan
from qwen3moe_engine.weights import no_progress

LIMITS = Limits(max_tokens=2048, max_seqs=64, max_context=2048, block_size=32)
CONTEXT, PROMPT, DECODE_STEPS, SEED = 1024, 512, 32, 7
REPEATS = 20


def sequence_step(
    rng: np.random.Generator, vocab_size: int, num_new: int, num_computed: int, first_block: int
) -> SequenceStep:
    count = num_blocks_for(num_computed + num_new, LIMITS.block_size)
    tokens = rng.integers(10, vocab_size - 10, num_new, dtype=np.int32)
    return SequenceStep(tokens, num_computed, list(range(first_block, first_block + count)))


def median_ms(executor: TensorRTExecutor, batch: Batch) -> float:
    executor.execute(batch)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        executor.execute(batch)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def reference_case(executor: TensorRTExecutor, rng: np.random.Generator, vocab_size: int) -> dict[str, np.ndarray]:
    """Tokens and logits of a prompt's last position and of the decode steps behind it."""
    tokens = rng.integers(10, vocab_size - 10, PROMPT + DECODE_STEPS, dtype=np.int32)
    blocks = list(range(num_blocks_for(len(tokens), LIMITS.block_size)))
    steps = [(0, PROMPT)] + [(PROMPT + i, PROMPT + i + 1) for i in range(DECODE_STEPS)]
    rows = [
        executor.execute(pack_batch([SequenceStep(tokens[start:end], start, blocks)], LIMITS.block_size, [0]))[0]
        for start, end in steps
    ]
    return {"tokens": tokens, "logits": np.stack(rows)}


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plugins", type=click.Path(path_type=Path))
@click.option("--tensorrt", "flavour", default="auto")
@click.option("--logits", "logits_path", type=click.Path(path_type=Path))
def main(export: Path, plugins: Path | None, flavour: str, logits_path: Path | None) -> None:
    manifest = load_manifest(export)
    plan, info = build_plan(export, manifest, load_tensorrt(flavour, plugins), LIMITS, ())
    path = export / "step.plan"
    save_plan(plan, info, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"TensorRT {info.tensorrt_version} {info.dtype}: {info.plugin_layers} plugin layers, {len(plan) / 1e6:.1f} MB, "
        f"built in {info.build_seconds} s, peak host memory {peak:.2f} GB",
        flush=True,
    )
    vocab_size, rng = manifest.dims.vocab_size, np.random.default_rng(SEED)
    per_seq = num_blocks_for(CONTEXT + 1, LIMITS.block_size)
    config = TensorRTConfig(num_blocks=64 * per_seq, random_seed=SEED)
    start = time.perf_counter()
    with TensorRTExecutor(export, manifest, path, None, config, no_progress, plugins) as executor:
        print(f"{executor.device.name}: ready in {time.perf_counter() - start:.1f} s, weights {executor.load_report}, "
              f"{free_memory() / 1e9:.1f} GB free", flush=True)  # fmt: skip
        if logits_path is not None:
            np.savez(logits_path, **reference_case(executor, rng, vocab_size))
        print("| step | ms, logits to host included |\n|---|---|")
        for batch_size in (1, 8, 64):
            steps = [sequence_step(rng, vocab_size, 1, CONTEXT, i * per_seq) for i in range(batch_size)]
            batch = pack_batch(steps, LIMITS.block_size, list(range(batch_size)))
            print(f"| decode {batch_size} x {CONTEXT} | {median_ms(executor, batch):.2f} |", flush=True)
        for length in (128, 2048):
            batch = pack_batch([sequence_step(rng, vocab_size, length, 0, 0)], LIMITS.block_size, [0])
            print(f"| prefill {length} | {median_ms(executor, batch):.2f} |", flush=True)


if __name__ == "__main__":
    main()
