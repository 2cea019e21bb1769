"""`qwen3moe-export bench throughput`: an engine with all the work at once. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from qwen3moe_engine.bench.throughput import ThroughputFigures, measure_throughput
from qwen3moe_engine.bench.workload import WorkItem
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_export.cli.executors import load_engine, open_export, serving_options, weights_option
from qwen3moe_export.cli.load_options import Load, load_options
from qwen3moe_export.cli.output_file import check_folder, write_text
from qwen3moe_export.cli.progress import spinner


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@weights_option
@serving_options
@load_options
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def command(load: Load, options: EngineOptions, export: Path, weights: Path | None, json_file: Path | None) -> None:
    """Put all prompts through EXPORT at once, and measure tokens per second and how full its steps were.

    Outputs have just the length asked for. Without --kv-tokens the KV pool holds all that runs at a time.

    \b
    Examples:
      qwen3moe-export bench throughput export --weights Qwen3-30B-A3B --num-requests 64 --input-len 128-512
      qwen3moe-export bench throughput export --executor tensorrt --plan engine.plan --random-weights 1 --cuda-graphs
    """
    check_folder(json_file)
    opened = open_export(export, weights, options, None)
    drawn = [item for part in load.draw() for item in part]
    prompts = [opened.encoder.encode(item.prompt) for item in drawn]  # before, so that reading text is not measured
    num_blocks = opened.num_blocks_for(prompts, SamplingParams(max(item.max_tokens for item in drawn)))
    engine = load_engine(opened, num_blocks if options.kv_tokens is None else None)
    items = [WorkItem(token_ids, item.max_tokens) for token_ids, item in zip(prompts, drawn, strict=True)]
    limits = opened.capacity.max_seqs, opened.capacity.max_step_tokens
    with spinner(f"running {load.num_requests} requests"):
        if load.num_warmup:
            measure_throughput(engine, items[: load.num_warmup], *limits)
        figures = measure_throughput(engine, items[load.num_warmup :], *limits)
    _print(figures, str(load), limits, Console())
    if json_file is not None:
        write_text(json_file, json.dumps({"load": asdict(load), "figures": asdict(figures)}, indent=1) + "\n")


def _print(figures: ThroughputFigures, title: str, limits: tuple[int, int], console: Console) -> None:
    max_seqs, max_step_tokens = limits
    for line in (
        title,
        f"{figures.duration:.2f} s: {figures.request_throughput:.2f} requests/s, "
        f"{figures.output_throughput:.1f} output tokens/s, {figures.total_throughput:.1f} tokens/s",
        f"{figures.num_steps} steps of {figures.mean_step:.2f} ms, each with "
        f"{figures.mean_step_seqs:.1f} of {max_seqs} sequences ({figures.seq_occupancy:.0%}) and "
        f"{figures.mean_step_tokens:.1f} of {max_step_tokens} tokens ({figures.token_occupancy:.0%})",
        f"{figures.num_prompt_tokens} prompt tokens, {figures.num_prefix_hits} of them from the prefix cache; "
        f"{figures.num_output_tokens} output tokens; {figures.num_preemptions} preemptions",
    ):
        console.print(line, highlight=False, markup=False)
