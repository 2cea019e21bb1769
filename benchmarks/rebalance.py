"""Expert load balancing under a skewed router, on as many GPUs as EXPORT, of a layout with redundant experts, is for:
decode steps before and after the experts of one rank, which most tokens choose, are moved to where the work is even.
And what counting costs (bench_moe_load.py).

    qwen3moe-export onnx CONFIG --dtype fp16 --ep 2 --redundant-experts 16 -o EXPORT
    qwen3moe-export engine EXPORT --max-tokens 8192 --max-seqs 256 --max-context 512
    python benchmarks/rebalance.py EXPORT

Weights are pseudo-random, with routers that prefer the first experts, rank 0's. Sequences of unlike lengths are
prefilled, in steps as large as the plan takes, and then decode tokens that are given beforehand, so that every run does
the same work whatever it draws; experts move half-way. At the end prompts are computed once more. Greedy tokens are
held against those of a run in which nothing moves. Such a model has near-ties, and moved experts change the order of
fp16 sums: tokens that differ are counted, with the largest gap between their logits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import bench_moe_load
import click
import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.logits import Draw
from qwen3moe_engine.parallel.executor import ParallelExecutor
from qwen3moe_engine.random_model import RandomWeights, RouterSkew
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tensorrt.executor import TensorRTConfig
from qwen3moe_engine.tensorrt.plan import find_plan, load_plan_info
from qwen3moe_engine.tensorrt.rank import TensorRTRunner, tensorrt_ranks

SEED, WARM_UP_STEPS = 7, 8
PROMPT_LENGTHS = (64, 192)  # from and to


@dataclass(frozen=True)
class Work:
    """Tokens of each sequence [B, N]: the first `lengths` [B] are its prompt, and num_steps more are decoded."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    num_steps: int

    @property
    def batch_size(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Moved:
    """num_experts: that came to rank 0. busiest: the busiest rank's share of the work of the steps before, as experts
    lay then."""

    num_experts: int
    milliseconds: float
    busiest: float


@dataclass(frozen=True)
class Run:
    """tokens: drawn, [steps, B]; gap: the largest between the logits of a drawn token and the expected one. prefill:
    tokens per second at the start and at the end."""

    milliseconds: NDArray[np.float64]
    tokens: NDArray[np.int64]
    gap: float
    moves: tuple[Moved, ...]
    prefill: tuple[float, float]


def make_work(batch_size: int, num_steps: int, vocab_size: int) -> Work:
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(*PROMPT_LENGTHS, batch_size)
    tokens = rng.integers(10, vocab_size - 10, (batch_size, PROMPT_LENGTHS[1] + num_steps), dtype=np.int32)
    return Work(tokens, lengths, num_steps)


class Sequences:
    """Those of `work` on an executor, which has blocks enough for all of their tokens."""

    def __init__(self, executor: ParallelExecutor, work: Work):
        self._executor, self._work = executor, work
        width = num_blocks_for(work.tokens.shape[1], executor.block_size)
        self._blocks = np.arange(work.batch_size * width).reshape(work.batch_size, width).tolist()

    def prefill(self, max_step_tokens: int) -> float:
        """All prompts, as many in a step as fit. Returns tokens per second."""
        begin = time.perf_counter()
        rows = list(range(self._work.batch_size))
        while rows:
            lengths = self._work.lengths[rows]
            count = int((np.cumsum(lengths) <= max_step_tokens).sum())
            steps = [
                SequenceStep(self._work.tokens[row, :length], 0, self._blocks[row])
                for row, length in zip(rows[:count], lengths, strict=False)
            ]
            rows = rows[count:]
            logits = self._executor.execute(pack_batch(steps, self._executor.block_size, [0]))
            logits.draw([Draw(SamplingParams(), 0)])
        return float(self._work.lengths.sum()) / (time.perf_counter() - begin)

    def decode(self, number: int, expected: NDArray[np.int64] | None) -> tuple[list[int], float, float]:
        """Step `number`: drawn tokens, milliseconds, and the largest gap to tokens that were expected."""
        starts = (self._work.lengths + number).tolist()
        steps = [
            SequenceStep(self._work.tokens[row, start : start + 1], start, self._blocks[row])
            for row, start in enumerate(starts)
        ]
        batch = pack_batch(steps, self._executor.block_size)
        begin = time.perf_counter()
        logits = self._executor.execute(batch)
        drawn = logits.draw([Draw(SamplingParams(), 0)] * len(steps))
        milliseconds = (time.perf_counter() - begin) * 1e3
        other = [] if expected is None else np.flatnonzero(expected != drawn).tolist()
        gaps = [
            values[drawn[row]] - values[expected[row]]
            for row, values in zip(other, logits.rows(other) if other else (), strict=True)
        ]
        return drawn, milliseconds, float(max(gaps, default=0.0))


def rebalance(executor: ParallelExecutor) -> Moved:
    runner = executor.runner
    assert isinstance(runner, TensorRTRunner) and runner.rebalancer is not None
    before, begin = dict(runner.rebalancer.placements), time.perf_counter()
    num_experts = executor.rebalance()
    milliseconds = (time.perf_counter() - begin) * 1e3
    loads = runner.rebalancer.loads.tolist()
    shares = [max(old.load_of_ranks(row)) / sum(row) for old, row in zip(before.values(), loads, strict=True)]
    return Moved(num_experts, milliseconds, float(np.mean(shares)))


def run(export: Path, config: TensorRTConfig, work: Work, expected: NDArray[np.int64] | None) -> Run:
    """With `expected` tokens experts move: half-way, and once more at the end."""
    times, tokens, gap, moves = [], [], 0.0, []
    max_step_tokens = load_plan_info(find_plan(export, None)).limits.max_tokens
    with ParallelExecutor(tensorrt_ranks(export, None, None, config, None)) as executor:
        sequences = Sequences(executor, work)
        sequences.prefill(max_step_tokens)  # warms up
        first = sequences.prefill(max_step_tokens)
        for number in range(work.num_steps):
            if expected is not None and number == work.num_steps // 2:
                moves.append(rebalance(executor))
            drawn, milliseconds, largest = sequences.decode(number, None if expected is None else expected[number])
            times.append(milliseconds)
            tokens.append(drawn)
            gap = max(gap, largest)
        if expected is not None:
            moves.append(rebalance(executor))
        prefill = (first, sequences.prefill(max_step_tokens))
    return Run(np.array(times), np.array(tokens), gap, tuple(moves), prefill)


def describe(work: Work, still: Run, moving: Run) -> list[str]:
    """A table of both halves of both runs, and notes on the moves."""
    half = work.num_steps // 2
    columns = ("steps", "ms a step", "tokens/s", "tokens the same", "tokens/s of prompts")
    lines = [f"Batch {work.batch_size}:\n", f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"]
    for name, found in (("nothing moves", still), ("experts move", moving)):
        for part, steps, prefill in zip(
            ("first", "second"), (slice(0, half), slice(half, None)), found.prefill, strict=True
        ):
            same = int((found.tokens[steps] == still.tokens[steps]).sum())
            milliseconds = float(np.median(found.milliseconds[steps][WARM_UP_STEPS:]))
            rate = 1e3 * work.batch_size / milliseconds
            cells = f"{milliseconds:.3f} | {rate:.0f} | {same} of {half * work.batch_size} | {prefill:.0f}"
            lines.append(f"| {name}, {part} half | {cells} |")
    moves = [
        f"- {moved.num_experts} experts came to rank 0 in {moved.milliseconds:.0f} ms; the busiest rank had had"
        f" {100 * moved.busiest:.1f}% of the work"
        for moved in moving.moves
    ]
    return [*lines, "", *moves, f"- the logits of tokens that differ lie at most {moving.gap:.4f} apart\n"]


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--batch", "batch_sizes", type=int, multiple=True, default=(64, 256), show_default=True)
@click.option("--steps", type=int, default=128, show_default=True)
@click.option("--router-skew", default="0.9/64", show_default=True, help="As of `generate`: share/experts.")
def main(export: Path, batch_sizes: tuple[int, ...], steps: int, router_skew: str) -> None:
    skew = RouterSkew.parse(router_skew, "--router-skew")
    manifest = load_stages(export)[0].manifest
    dims, layout = manifest.dims, manifest.part.layout
    print(f"{dims.num_layers} layers, {dims.num_experts} experts, {layout}, {manifest.dtype}, router skew {skew}\n")
    for batch_size in batch_sizes:
        work = make_work(batch_size, steps, dims.vocab_size)
        num_blocks = batch_size * num_blocks_for(work.tokens.shape[1], 16)
        config = TensorRTConfig(num_blocks, random_weights=RandomWeights(SEED, skew))
        still = run(export, config, work, None)
        moving = run(export, config, work, still.tokens)
        print("\n".join(describe(work, still, moving)), flush=True)
    print("\n".join(bench_moe_load.table()))


if __name__ == "__main__":
    main()
