"""`qwen3moe-export onnx`: a checkpoint's architecture to model.onnx and manifest.json."""

from __future__ import annotations

import time
from pathlib import Path

import click

from qwen3moe_engine.layout import SINGLE, Layout
from qwen3moe_engine.stages import ExportedStage, load_stages
from qwen3moe_export.cli.layout_options import layout_options
from qwen3moe_export.cli.progress import spinner
from qwen3moe_export.config import load_config


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Of weights and activations.  [default: the checkpoint's]",
)
@click.option("--inputs-embeds", is_flag=True, help="Take embeddings [num_tokens, hidden_size] instead of token ids.")
@layout_options
def command(checkpoint: Path, output: Path, dtype: str | None, inputs_embeds: bool, layout: Layout | None) -> None:
    """Export CHECKPOINT (a folder with config.json, or config.json itself) to ONNX.

    Weights are inputs of the graph, so none are needed: config.json is enough. With --tp, --ep or --pp the graph is
    that of one rank of so many; of a pipeline, each stage has a folder in the output.

    \b
    Examples:
      qwen3moe-export onnx Qwen3-30B-A3B -o export
      qwen3moe-export onnx Qwen3-30B-A3B/config.json -o export --dtype fp16
      qwen3moe-export onnx Qwen3-235B-A22B -o export --tp 4 --pp 2
    """
    start = time.perf_counter()
    config = load_config(checkpoint)
    with spinner("tracing and translating"):
        from qwen3moe_export.artifact import ExportOptions, export_onnx, read_eos_token_ids

        options = ExportOptions(dtype or config.dtype, inputs_embeds, layout or SINGLE)
        export_onnx(config, options, read_eos_token_ids(checkpoint), output)
    for stage in load_stages(output):
        _print(stage, config.num_layers)
    click.echo(f"{options.layout}, {time.perf_counter() - start:.1f} s")


def _print(stage: ExportedStage, num_layers: int) -> None:
    manifest = stage.manifest
    ops = ", ".join(f"{count} {name}" for name, count in manifest.op_counts.items())
    sizes = ", ".join(f"{name} {(stage.folder / name).stat().st_size / 1e6:.2f} MB" for name in manifest.graphs)
    layers = len(manifest.part.layers(num_layers))
    click.echo(f"{stage.folder}: {manifest.dtype}, {layers} layers, {ops}; {sizes}")
