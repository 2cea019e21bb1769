"""Which runtime executes an export: the options of it on the command line, and the engine they ask for.

Owns: the command line's names of EngineOptions' fields. What goes together, and defaults, are EngineOptions' own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.engine import Engine
from qwen3moe_engine.engine_options import EXECUTORS, EngineOptions
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_export.cli.option_group import option_group
from qwen3moe_export.cli.progress import progress

_PATH = click.Path(path_type=Path)


def open_export(export: Path, weights: Path | None, options: EngineOptions, tokenizer: Path | None) -> OpenedExport:
    """Raises InputError, or UsageError without the weights that ONNX Runtime always needs."""
    if weights is None and options.executor == "onnxruntime":
        raise click.UsageError("Missing option '--weights'.")
    return OpenedExport(export, weights, options, tokenizer)


def load_engine(opened: OpenedExport, num_blocks: int | None = None) -> Engine:
    """With progress on the terminal, and for TensorRT what the weights' way to the device took."""
    engine = opened.load(num_blocks, progress)
    click.get_current_context().call_on_close(engine.executor.close)
    executor: Any = engine.executor
    if opened.options.executor == "tensorrt" and opened.manifest.part.layout.world_size == 1:
        report = executor.load_report
        click.echo(
            f"{executor.device.name}: {report.num_bytes / 1e9:.3f} GB of weights in {report.seconds:.2f} s, "
            f"{report.gigabytes_per_second:.2f} GB/s",
            err=True,
        )
    return engine


weights_option = click.option("--weights", type=_PATH, help="The checkpoint: a folder or a .safetensors file.")


def router_skew_option(text: str) -> Callable[..., Any]:
    """With `text` as its help."""

    def parse(_: click.Context, option: click.Parameter, given: str | None) -> RouterSkew | None:
        return None if given is None else RouterSkew.parse(given, option.opts[0])

    return click.option("--router-skew", callback=parse, metavar="SHARE/EXPERTS", help=text)


RUNTIME_OPTIONS = (
    click.option("--executor", type=click.Choice(EXECUTORS), default=EXECUTORS[0], show_default=True),
    click.option("--plan", type=_PATH, help="TensorRT: the plan.  [default: the only one in EXPORT]"),
    click.option("--random-weights", type=int, metavar="SEED", help="TensorRT: make weights on the device."),
    router_skew_option("Of random weights: which share of assignments the first experts take, such as 0.9/8."),
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        default=None,
        help="TensorRT: replay steps as CUDA graphs.  [default: on]",
    ),
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="TensorRT: start the next step while one runs.  [default: on]",
    ),
    click.option("--plugins", type=_PATH, help="TensorRT: folder of our libraries.  [default: the package's]"),
    click.option(
        "--step-timeout",
        type=click.FloatRange(1),
        metavar="SECONDS",
        help="Without progress, after which a rank of many counts as hung.  [default: 8]",
    ),
    click.option("--ray", metavar="ADDRESS", help="Of a Ray cluster, over whose hosts stages are spread; or auto."),
    click.option("--threads", "num_threads", type=click.IntRange(0), default=0, help="ONNX Runtime; 0 is all cores."),
)

CAPACITY_OPTIONS = (
    click.option("--max-seqs", type=click.IntRange(1), help="Of a step.  [default: the plan's; ONNX Runtime: 32]"),
    click.option(
        "--max-step-tokens", type=click.IntRange(1), help="Of a step.  [default: the plan's; ONNX Runtime: 256]"
    ),
    click.option("--rebalance-steps", type=click.IntRange(1), help="Between moves of experts.  [default: no moves]"),
    click.option(
        "--kv-tokens",
        type=click.IntRange(1),
        help="Tokens of the KV pool.  [default: what the GPU has left; ONNX Runtime, which copies it each step: 4096]",
    ),
)

executor_options = option_group("options", EngineOptions, RUNTIME_OPTIONS)
serving_options = option_group("options", EngineOptions, RUNTIME_OPTIONS + CAPACITY_OPTIONS)
