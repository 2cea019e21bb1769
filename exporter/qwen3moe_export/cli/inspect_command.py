"""`qwen3moe-export inspect`: what a checkpoint or an export is, as a table. Needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from qwen3moe_engine.checkpoint import INDEX_NAME, NUMPY_DTYPES, SINGLE_NAME, open_checkpoint
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.manifest import FILE_NAME, InputSpec, Manifest, load_manifest
from qwen3moe_engine.stages import ExportedStage, load_stages, stage_folder
from qwen3moe_engine.weights import num_bytes_of, plan_weights
from qwen3moe_export.cli.layout_options import layout_options
from qwen3moe_export.config import load_config
from qwen3moe_export.layout import weight_specs
from qwen3moe_export.layout_facts import layout_facts

TABLE_WIDTH = 110  # where standard output is no terminal, whose width would else be taken for 80


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@layout_options
@click.option("--gpu-memory", type=float, default=80.0, show_default=True, metavar="GB", help="Of each rank.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(path: Path, layout: Layout | None, gpu_memory: float, as_json: bool) -> None:
    """Print PATH: an export (or its manifest.json), or a checkpoint (or its config.json).

    Of a checkpoint with weights, every tensor is checked against the architecture. With --tp, --ep or --pp it prints
    what each rank would hold, how many tokens of keys and values fit besides, and what travels; config.json is enough.

    \b
    Examples:
      qwen3moe-export inspect Qwen3-30B-A3B
      qwen3moe-export inspect export --json
      qwen3moe-export inspect Qwen3-235B-A22B/config.json --tp 8 --gpu-memory 141
    """
    folder = path.parent if path.name == FILE_NAME else path
    if layout is not None:
        facts = layout_facts(load_config(path), layout, int(gpu_memory * 1e9))
        click.echo(json.dumps(facts, indent=1)) if as_json else _print(str(path), facts)
        return
    if (folder / FILE_NAME).is_file():
        facts = _describe_export(load_manifest(folder))
    elif (stage_folder(folder, 0) / FILE_NAME).is_file():
        facts = _describe_pipeline(load_stages(folder))
    else:
        facts = _describe_checkpoint(path)
    click.echo(json.dumps(facts, indent=1)) if as_json else _print(str(path), facts)


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    config = load_config(path)
    specs = weight_specs(config, config.dtype)
    facts: dict[str, Any] = {"architecture": asdict(config), "weights": _weight_facts(specs)}
    facts["weights"]["kv_cache_bytes_per_token"] = (
        2 * config.num_layers * config.num_kv_heads * config.head_dim * NUMPY_DTYPES[config.dtype].itemsize
    )
    if path.is_dir() and any((path / name).is_file() for name in (INDEX_NAME, SINGLE_NAME)):
        checkpoint = open_checkpoint(path)
        plan_weights(specs, checkpoint)
        tensors = checkpoint.tensors.values()
        facts["files"] = {
            "files": len({tensor.file for tensor in tensors}),
            "tensors": len(tensors),
            "dtypes": dict(Counter(tensor.dtype for tensor in tensors)),
            "bytes": sum(tensor.num_bytes for tensor in tensors),
        }
    return facts


def _describe_export(manifest: Manifest) -> dict[str, Any]:
    return {
        "export": {
            "dtype": manifest.dtype,
            "layout": str(manifest.part.layout),
            "stage": manifest.part.stage,
            "tokens": "inputs_embeds" if manifest.takes_embeddings else "input_ids",
            "operators": {name: count for name, count in manifest.op_counts.items() if count},
            "eos_token_ids": manifest.eos_token_ids,
        },
        "dimensions": asdict(manifest.dims),
        "weights": _weight_facts(manifest.of_kind("weight")),
        "graphs": {name: asdict(graph) for name, graph in manifest.graphs.items()},
        "batch inputs": {
            spec.name: f"{spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in manifest.of_kind("batch")
        },
        "versions": manifest.versions,
    }


def _describe_pipeline(stages: tuple[ExportedStage, ...]) -> dict[str, Any]:
    return {
        f"stage {number}: {section}": values
        for number, stage in enumerate(stages)
        for section, values in _describe_export(stage.manifest).items()
    }


def _weight_facts(specs: list[InputSpec]) -> dict[str, Any]:
    return {
        "inputs": len(specs),
        "parameters": sum(math.prod(spec.static_shape) for spec in specs),
        "bytes": sum(map(num_bytes_of, specs)),
    }


def _print(title: str, facts: dict[str, Any]) -> None:
    console = Console()
    table = Table("", "", "", title=title, show_header=False, width=None if console.is_terminal else TABLE_WIDTH)
    for section, values in facts.items():
        for index, (name, value) in enumerate(values.items()):
            table.add_row(section if index == 0 else "", name, _readable(name, value))
        table.add_section()
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(table)


def _readable(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(key, item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if "bytes" in name and isinstance(value, int):
        return f"{value / 1e9:,.3f} GB" if value >= 1e8 else f"{value:,} bytes"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
