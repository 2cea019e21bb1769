"""`qwen3moe-export engine`: an export's graph to a TensorRT plan. Needs no torch and no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.stages import ExportedStage, load_stages
from qwen3moe_engine.tensorrt.plan import Limits
from qwen3moe_export.cli.lazy_group import BadInput
from qwen3moe_export.cli.progress import spinner

_DEFAULTS = Limits()


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plan to write.  [default: EXPORT/FLAVOUR[-TARGETS].plan]",
)
@click.option("--tensorrt", type=click.Choice(["auto", "rtx", "8", "10", "11"]), default="auto", show_default=True)
@click.option("--target", help="Compute capabilities such as sm80,sm89.  [default: the GPU present]")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=_DEFAULTS.max_tokens, show_default=True, help="Of one step."
)
@click.option("--max-seqs", type=click.IntRange(1), default=_DEFAULTS.max_seqs, show_default=True, help="In one step.")
@click.option(
    "--max-context",
    type=click.IntRange(1),
    help=f"Tokens of a sequence.  [default: {_DEFAULTS.max_context}, or the model's if fewer]",
)
@click.option(
    "--block-size", type=click.Choice(["16", "32", "64"]), default=str(_DEFAULTS.block_size), show_default=True
)
@click.option(
    "--plugins",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the plugin libraries.  [default: the package's]",
)
def command(
    export: Path,
    output: Path | None,
    tensorrt: str,
    target: str | None,
    plugins: Path | None,
    block_size: str,
    max_context: int | None,
    **limits: Any,
) -> None:
    """Build a TensorRT plan from EXPORT, with a sidecar that binds the two; of a pipeline, one for each stage.

    \b
    Examples:
      qwen3moe-export engine export
      qwen3moe-export engine export --tensorrt rtx --target sm89,sm120 --max-tokens 4096
    """
    stages = load_stages(export)
    if output is not None and len(stages) > 1:
        raise click.UsageError("--output is one file, and a pipeline has a plan for each stage")
    positions = stages[0].manifest.dims.max_position_embeddings
    context = max_context or min(_DEFAULTS.max_context, positions)
    requested = Limits(block_size=int(block_size), max_context=context, **limits)
    targets = tuple(target.split(",")) if target else ()
    for stage in stages:
        _build(stage, tensorrt, plugins, requested, targets, output)


def _build(
    stage: ExportedStage,
    tensorrt: str,
    plugins: Path | None,
    limits: Limits,
    targets: tuple[str, ...],
    output: Path | None,
) -> None:
    from qwen3moe_engine.tensorrt.build import BuildError, build_plan
    from qwen3moe_engine.tensorrt.flavour import load_tensorrt
    from qwen3moe_engine.tensorrt.plan import save_plan

    with spinner("building"):
        loaded = load_tensorrt(tensorrt, plugins)
        try:
            plan, info = build_plan(stage.folder, stage.manifest, loaded, limits, targets)
        except BuildError as error:
            raise BadInput(str(error)) from None
    path = output or stage.folder / f"{'-'.join((f'tensorrt-{info.flavour}', *targets))}.plan"
    save_plan(plan, info, path)
    gpu = info.gpu or ", ".join(info.targets)
    click.echo(
        f"{path}: TensorRT {info.flavour} {info.tensorrt_version}, {gpu}, {info.dtype}, "
        f"{info.plugin_layers} plugin layers; {len(plan) / 1e6:.1f} MB in {info.build_seconds:.1f} s"
    )
