"""`qwen3moe-export pack`: a checkpoint rewritten in the engine's layout."""

from __future__ import annotations

import time
from pathlib import Path

import click

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.packing import pack
from qwen3moe_export.cli.progress import progress


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "--weights", type=click.Path(path_type=Path), required=True, help="The checkpoint: a folder or a .safetensors file."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: EXPORT/weights.safetensors]",
)
def command(export: Path, weights: Path, output: Path | None) -> None:
    """Rewrite a checkpoint in the layout and dtype of EXPORT: fused experts and fused query, key and value.

    The result is one safetensors file that every other command takes as --weights. Tensors are streamed one by one.

    \b
    Example:
      qwen3moe-export pack export --weights Qwen3-30B-A3B
    """
    start = time.perf_counter()
    manifest, checkpoint = load_manifest(export), open_checkpoint(weights)
    target = output or export / "weights.safetensors"
    num_bytes = pack(manifest, checkpoint, target, progress)
    seconds = time.perf_counter() - start
    click.echo(f"{target}: {num_bytes / 1e9:.3f} GB in {seconds:.1f} s, {num_bytes / 1e9 / seconds:.2f} GB/s")
