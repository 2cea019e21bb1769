"""Which runtime executes an export: the options of it, and the executor they ask for.

Owns: the defaults of each runtime. Imports a runtime only when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.manifest import Manifest
from qwen3moe_export.cli.option_group import option_group
from qwen3moe_export.cli.progress import progress
from qwen3moe_plugins.errors import InputError

EXECUTORS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class ExecutorOptions:
    """As given on the command line."""

    executor: str
    weights: Path | None
    plan: Path | None
    random_weights: int | None
    cuda_graphs: bool
    plugins: Path | None


@dataclass(frozen=True)
class Capacity:
    """block_size: tokens. max_model_len: tokens of a sequence. max_step_tokens, max_seqs: of a step."""

    block_size: int
    max_model_len: int
    max_step_tokens: int
    max_seqs: int


def capacity_of(options: ExecutorOptions, manifest: Manifest) -> Capacity:
    """Known before anything is loaded, so that requests can be refused early."""
    if options.executor == "onnxruntime":
        # 256 tokens a step: the CPU functions compute every expert for every token, so longer prompts go in chunks
        return Capacity(16, manifest.dims.max_position_embeddings, 256, 32)
    from qwen3moe_engine.tensorrt.plan import load_plan_info

    assert options.plan is not None
    limits = load_plan_info(options.plan).limits
    return Capacity(limits.block_size, limits.max_context, limits.max_tokens, limits.max_seqs)


def open_executor(options: ExecutorOptions, export: Path, manifest: Manifest, num_blocks: int) -> Executor:
    """The executor, with weights loaded and a KV pool of `num_blocks`."""
    checkpoint = open_checkpoint(options.weights) if options.weights is not None else None
    if options.executor == "onnxruntime":
        from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor

        assert checkpoint is not None
        block_size = capacity_of(options, manifest).block_size
        if manifest.part.layout.world_size > 1:
            from qwen3moe_engine.parallel.executor import ParallelExecutor
            from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks

            return ParallelExecutor(
                onnxruntime_ranks(export, checkpoint.path, OnnxRuntimeConfig(num_blocks, block_size))
            )
        return OnnxRuntimeExecutor(export, manifest, checkpoint, OnnxRuntimeConfig(num_blocks, block_size), progress)
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor

    assert options.plan is not None
    config = TensorRTConfig(num_blocks, cuda_graphs=options.cuda_graphs, random_seed=options.random_weights)
    executor = TensorRTExecutor(export, manifest, options.plan, checkpoint, config, progress, options.plugins)
    report = executor.load_report
    click.echo(
        f"{executor.device.name}: {report.num_bytes / 1e9:.3f} GB of weights in {report.seconds:.2f} s, "
        f"{report.gigabytes_per_second:.2f} GB/s",
        err=True,
    )
    return executor


def _check(options: ExecutorOptions) -> None:
    if options.executor == "onnxruntime":
        given = {"--plan": options.plan, "--random-weights": options.random_weights, "--plugins": options.plugins}
        named = [name for name, value in given.items() if value is not None]
        if named or options.cuda_graphs:
            raise click.UsageError(f"{', '.join(named) or '--cuda-graphs'} goes with --executor tensorrt")
        if options.weights is None:
            raise click.UsageError("Missing option '--weights'.")
        return
    if options.plan is None:
        raise InputError("--plan", got="none", expected="a plan", remedy="build one with `qwen3moe-export engine`")
    if (options.weights is None) == (options.random_weights is None):
        raise click.UsageError("give either --weights or --random-weights")


def _make(**given: Any) -> ExecutorOptions:
    options = ExecutorOptions(**given)
    _check(options)
    return options


_PATH = click.Path(path_type=Path)
executor_options = option_group(
    "options",
    _make,
    (
        click.option("--weights", type=_PATH, help="The checkpoint: a folder or a .safetensors file."),
        click.option("--executor", type=click.Choice(EXECUTORS), default=EXECUTORS[0], show_default=True),
        click.option("--plan", type=_PATH, help="TensorRT: the plan, as `engine` built it."),
        click.option("--random-weights", type=int, metavar="SEED", help="TensorRT: make weights on the device."),
        click.option("--cuda-graphs", is_flag=True, help="TensorRT: replay decode steps as CUDA graphs."),
        click.option("--plugins", type=_PATH, help="TensorRT: folder of our libraries.  [default: the package's]"),
    ),
)
