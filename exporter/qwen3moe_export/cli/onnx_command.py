"""`qwen3moe-export onnx`: a checkpoint's architecture to model.onnx and manifest.json."""

from __future__ import annotations

import time
from pathlib import Path

import click

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
def command(checkpoint: Path, output: Path, dtype: str | None, inputs_embeds: bool) -> None:
    """Export CHECKPOINT (a folder with config.json, or config.json itself) to ONNX.

    Weights are inputs of the graph, so none are needed: config.json is enough.

    \b
    Examples:
      qwen3moe-export onnx Qwen3-30B-A3B -o export
      qwen3moe-export onnx Qwen3-30B-A3B/config.json -o export --dtype fp16
    """
    start = time.perf_counter()
    config = load_config(checkpoint)
    with spinner("tracing and translating"):
        from qwen3moe_export.artifact import ExportOptions, export_onnx, read_eos_token_ids

        options = ExportOptions(dtype or config.dtype, inputs_embeds)
        manifest = export_onnx(config, options, read_eos_token_ids(checkpoint), output)
    ops = ", ".join(f"{count} {name}" for name, count in manifest.op_counts.items() if count)
    sizes = ", ".join(f"{name} {(output / name).stat().st_size / 1e6:.2f} MB" for name in manifest.graphs)
    layers, seconds = manifest.dims.num_layers, time.perf_counter() - start
    click.echo(f"{output}: {manifest.dtype}, {layers} layers, {ops}; {sizes}; {seconds:.1f} s")
