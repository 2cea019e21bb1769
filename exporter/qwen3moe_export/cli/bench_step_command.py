"""`qwen3moe-export bench step`: decode steps of an engine, beside the bound and a peer. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from qwen3moe_engine.bench.bound import decode_bytes
from qwen3moe_engine.bench.step_case import StepCase
from qwen3moe_engine.bench.steps import num_new_tokens
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.layout import Layout
from qwen3moe_export.cli.bench_row import Row, make_row
from qwen3moe_export.cli.bench_table import Files, file_options, open_clock, read_peer, report
from qwen3moe_export.cli.executors import executor_options, open_export, weights_option
from qwen3moe_export.cli.layout_options import layout_options, require_layout

CASES = "1x1024,8x1024,32x1024,64x1024,128x1024,256x1024,1x8000,8x8000"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("export", type=_PATH)
@weights_option
@executor_options
@layout_options
@click.option(
    "--cases",
    default=CASES,
    show_default=True,
    help="BATCHxCONTEXT, with commas between; a context may be a range, spread evenly: 8x1-2047.",
)
@click.option("--steps", "num_steps", type=click.IntRange(1), default=64, show_default=True, help="Timed of each case.")
@click.option("--bandwidth", type=float, default=4.3e12, show_default=True, help="Of memory, bytes/s, for the bound.")
@click.option("--peer", type=_PATH, help="A JSON object: a peer's milliseconds by case.")
@file_options
def command(
    options: EngineOptions,
    files: Files,
    layout: Layout | None,
    export: Path,
    weights: Path | None,
    cases: str,
    num_steps: int,
    bandwidth: float,
    peer: Path | None,
) -> None:
    """Time of a decode step of EXPORT by batch and context: the whole engine, sampler included.

    \b
    Examples:
      qwen3moe-export bench step export --executor tensorrt --plan engine.plan --random-weights 7 --peer vllm.json
      qwen3moe-export bench step export --executor tensorrt --random-weights 7 --router-skew 0.9/8 --cases 64x1-8191
    """
    peers, wanted = read_peer(peer), [StepCase.parse(case, "--cases") for case in cases.split(",")]
    opened = open_export(export, weights, options, None)
    require_layout(layout, opened.manifest, export)
    max_step_tokens = opened.capacity.max_step_tokens
    drawn = {case: case.draw() for case in wanted}
    new = {case: num_new_tokens(contexts, num_steps, max_step_tokens) for case, contexts in drawn.items()}
    clock = open_clock(opened, [[tokens + new[case] for tokens in contexts] for case, contexts in drawn.items()])

    def measure(case: StepCase) -> Row:
        times, contexts = clock.decode(drawn[case], num_steps), drawn[case]
        bound = decode_bytes(opened.manifest, contexts, options.router_skew) / bandwidth * 1e3
        return make_row(str(case), times, len(contexts), bound, peers.get(str(case)))

    report(wanted, measure, files)
