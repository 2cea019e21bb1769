"""`qwen3moe-export bench prefill`: time to the first token, beside a peer. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.layout import Layout
from qwen3moe_export.cli.bench_row import Row, make_row
from qwen3moe_export.cli.bench_table import Files, file_options, open_clock, parse_sizes, read_peer, report
from qwen3moe_export.cli.executors import executor_options, open_export, weights_option
from qwen3moe_export.cli.layout_options import layout_options, require_layout

LENGTHS = "128,2048,8192"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("export", type=_PATH)
@weights_option
@executor_options
@layout_options
@click.option("--lengths", default=LENGTHS, show_default=True, help="Tokens of a prompt, with commas between.")
@click.option("--peer", type=_PATH, help="A JSON object: a peer's milliseconds by length.")
@file_options
def command(
    options: EngineOptions,
    files: Files,
    layout: Layout | None,
    export: Path,
    weights: Path | None,
    lengths: str,
    peer: Path | None,
) -> None:
    """Time to the first token of a prompt that has EXPORT's engine to itself.

    \b
    Example:
      qwen3moe-export bench prefill export --executor tensorrt --plan engine.plan --random-weights 7
    """
    peers, wanted = read_peer(peer), parse_sizes(lengths, "--lengths", "128,2048")
    opened = open_export(export, weights, options, None)
    require_layout(layout, opened.manifest, export)
    clock = open_clock(opened, [[length + 1] for length in wanted])

    def measure(length: int) -> Row:
        return make_row(str(length), clock.first_token(length), length, None, peers.get(str(length)))

    report(wanted, measure, files)
