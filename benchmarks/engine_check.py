"""A TensorRT engine against golden tokens and logits of the torch reference (make_greedy_golden.py). Needs no torch.

The plan lies in EXPORT, for the limits below; of an export for many ranks, which run on a GPU each, tokens are checked.

Greedy tokens of every prompt must be the reference's, whoever shares the batch: alone, together, with chunked prefill,
with and without CUDA graphs, and with a KV pool that holds only some requests at once. A first difference counts as
equal only where the reference's two best logits are closer than the tolerance; every such case is printed.

    qwen3moe-export engine EXPORT --max-tokens 512 --max-seqs 32 --max-context 512 --block-size 16
    python benchmarks/engine_check.py EXPORT --weights CHECKPOINT --golden golden.npz
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.parallel.executor import OverlappingParallelExecutor, ParallelExecutor
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.tensorrt.plan import find_plan
from qwen3moe_engine.tensorrt.rank import tensorrt_ranks
from qwen3moe_engine.weights import no_progress
from qwen3moe_plugins.errors import InputError

MAX_TOKENS, NUM_BLOCKS = 512, 800
# An engine may lose twice what plain torch in the same dtype loses against fp32: both round at about the same places.
FACTOR, EPSILON = 2.0, 1e-3


@dataclass(frozen=True)
class Golden:
    """Per prompt: ids, greedy tokens of the reference in dtype, gaps between its two best logits, and the logits of
    prompt and tokens in fp32 (truth) and in dtype (narrow)."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    gaps: list[np.ndarray]
    truth: list[np.ndarray]
    narrow: list[np.ndarray]

    def loss(self, percentile: float) -> float:
        """What plain torch in dtype loses against fp32: of the largest logit error at each position, a percentile.

        A few positions lose a hundred times the median, where rounding makes the router choose another expert."""
        return error_percentile(self.narrow, self.truth, percentile)

    @property
    def tolerance(self) -> float:
        """Of a logit, for near-ties."""
        return FACTOR * self.loss(99) + EPSILON


def error_percentile(got: list[np.ndarray], truth: list[np.ndarray], percentile: float) -> float:
    errors = [np.abs(g - t).max(axis=1) for g, t in zip(got, truth, strict=True)]
    return float(np.percentile(np.concatenate(errors), percentile))


def load_golden(path: Path) -> Golden:
    with np.load(path) as file:
        count = sum(name.startswith("prompt.") for name in file.files)
        fields = {key: [file[f"{key}.{i}"] for i in range(count)] for key in ("gaps", "truth", "narrow")}
        ids = {key: [file[f"{key}.{i}"].tolist() for i in range(count)] for key in ("prompt", "tokens")}
    return Golden(ids["prompt"], ids["tokens"], fields["gaps"], fields["truth"], fields["narrow"])


def compare_tokens(name: str, golden: Golden, found: list[tuple[int, ...]]) -> bool:
    """Prints a row; whether every prompt's tokens are the reference's, or leave them at a near-tie."""
    same = ties = 0
    for index, (expected, got) in enumerate(zip(golden.tokens, found, strict=True)):
        first = next((i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]), None)
        if first is None:
            same += 1
            continue
        gap = float(golden.gaps[index][first])
        tie = gap <= golden.tolerance
        ties += tie
        verdict = "a near-tie" if tie else "WRONG"
        print(f"    prompt {index}, token {first}: {got[first]} for {expected[first]}, gap {gap:.4f}: {verdict}")
    passed = same + ties == len(found)
    print(f"| {name} | {same} | {ties} | {len(found) - same - ties} | {'pass' if passed else 'FAIL'} |", flush=True)
    return passed


def generate(executor: Executor, manifest: Manifest, prompts: list[list[int]], max_step_tokens: int,
             max_seqs: int, num_blocks: int) -> list[tuple[int, ...]]:  # fmt: skip
    blocks = BlockManager(num_blocks, executor.block_size)
    scheduler = Scheduler(blocks, executor.max_model_len, max_step_tokens, max_seqs)
    engine = Engine(executor, scheduler, manifest.dims.vocab_size, manifest.eos_token_ids)
    completions = engine.generate(prompts, SamplingParams(max_new_tokens=64, ignore_eos=True))
    assert blocks.num_free == num_blocks
    return [completion.token_ids for completion in completions]


def check_tokens(executor: Executor, manifest: Manifest, golden: Golden, graphs: str) -> bool:
    """Every way of batching."""
    total = executor.num_blocks
    alone = [generate(executor, manifest, [prompt], 256, 1, total)[0] for prompt in golden.prompts]
    longest = num_blocks_for(max(map(len, golden.prompts)) + 64, executor.block_size)
    rows = {
        "alone": alone,
        "20 together": generate(executor, manifest, golden.prompts, 512, 32, total),
        "prefill in chunks of 33 tokens": generate(executor, manifest, golden.prompts, 33, 32, total),
        "a pool that holds the longest only": generate(executor, manifest, golden.prompts, 256, 32, longest),
    }
    passed = [compare_tokens(f"{name}, {graphs}", golden, found) for name, found in rows.items()]
    return all(passed)


def check_logits(executor: TensorRTExecutor, golden: Golden) -> bool:
    """Teacher-forced logits of every position of every sequence, each prefilled in one step."""
    found = []
    blocks = BlockManager(executor.num_blocks, executor.block_size)
    for prompt, tokens in zip(golden.prompts, golden.tokens, strict=True):
        sequence = np.array(prompt + tokens[:-1], np.int32)
        held = blocks.allocate(num_blocks_for(len(sequence), executor.block_size))
        found.append(executor.execute(pack_batch([SequenceStep(sequence, 0, held)], executor.block_size)).rows())
        blocks.release(held)
    passed = True
    for percentile in (50, 99, 100):
        error, loss = error_percentile(found, golden.truth, percentile), golden.loss(percentile)
        fits = error <= FACTOR * loss + EPSILON
        passed = passed and fits
        verdict = "pass" if fits else "FAIL"
        print(f"| logit error, percentile {percentile} | {error:.4f} | torch {loss:.4f} | | {verdict} |", flush=True)
    return passed


def check_refusal(executor: Executor, manifest: Manifest) -> bool:
    """A request that the pool can never hold is refused by name."""
    try:
        generate(executor, manifest, [[1] * 100], 256, 1, 4)
    except InputError as error:
        print(f"| a request larger than the pool | {error} | | | pass |")
        return True
    print("| a request larger than the pool | accepted | | | FAIL |")
    return False


def open_ranks(
    export: Path, weights: Path, plugins: Path | None, cuda_graphs: bool, rebalance_steps: int | None
) -> TensorRTExecutor | ParallelExecutor:
    """One GPU's executor gives the logits of every token."""
    first = load_stages(export)[0]
    config = TensorRTConfig(NUM_BLOCKS, max_logits=MAX_TOKENS, cuda_graphs=cuda_graphs)
    layout = first.manifest.part.layout
    if layout.world_size > 1:
        kind = OverlappingParallelExecutor if layout.pp == 1 else ParallelExecutor
        ranks = tensorrt_ranks(export, None, weights, config, plugins)
        return kind(ranks, rebalance_steps=rebalance_steps)
    plan = find_plan(first.folder, None)
    return TensorRTExecutor(export, first.manifest, plan, open_checkpoint(weights), config, no_progress, plugins)


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--golden", "golden_path", type=click.Path(path_type=Path), required=True)
@click.option("--plugins", type=click.Path(path_type=Path))
@click.option("--rebalance-steps", type=int, help="Between moves of experts, of which there must be some.")
def main(export: Path, weights: Path, golden_path: Path, plugins: Path | None, rebalance_steps: int | None) -> None:
    manifest, golden = load_stages(export)[0].manifest, load_golden(golden_path)
    print(f"{manifest.part.layout}, {manifest.dtype}; tolerance of a logit {golden.tolerance:.4f}")
    print("| check | same | near-ties | wrong | verdict |\n|---|---|---|---|---|")
    passed = []
    for cuda_graphs in (False, True):
        start = time.perf_counter()
        with open_ranks(export, weights, plugins, cuda_graphs, rebalance_steps) as executor:
            passed.append(check_tokens(executor, manifest, golden, "CUDA graphs" if cuda_graphs else "no graphs"))
            if isinstance(executor, TensorRTExecutor):
                passed.append(check_logits(executor, golden))
            passed.append(check_refusal(executor, manifest))
            if rebalance_steps is not None:
                assert isinstance(executor, ParallelExecutor)
                passed.append(executor.num_experts_moved > 0)
                print(f"    {executor.num_experts_moved} experts came to rank 0")
        print(f"    {time.perf_counter() - start:.1f} s in all", flush=True)
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
