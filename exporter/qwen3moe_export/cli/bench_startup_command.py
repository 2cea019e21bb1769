"""`qwen3moe-export bench startup`: from the start of the process to the first token, phase by phase. Needs no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.phases import Phases
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_export.cli.executors import executor_options, load_engine, open_export, weights_option

_PATH = click.Path(path_type=Path)
_START_TIME = 21  # in /proc/PID/stat, behind the name in parentheses, counted from 2: clock ticks since boot


@click.command()
@click.argument("export", type=_PATH)
@weights_option
@executor_options
@click.option("--length", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the prompt.")
def command(options: EngineOptions, export: Path, weights: Path | None, length: int) -> None:
    """Time from the start of this process to a first token of EXPORT, and where it goes. Linux only.

    \b
    Example:
      qwen3moe-export bench startup export --executor tensorrt --plan engine.plan --random-weights 7
    """
    before, phases = _seconds_since_start(), Phases()
    with phases("opening the export"):
        opened = open_export(export, weights, options, None)
    with phases("loading the engine"):
        engine = load_engine(opened)
    with phases("first token"):
        engine.generate([_prompt(length, 0, engine.vocab_size)], SamplingParams(max_new_tokens=1))
    with phases("first token again"):
        engine.generate([_prompt(length, 1, engine.vocab_size)], SamplingParams(max_new_tokens=1))
    executor: Any = engine.executor
    of_engine = executor.phases.seconds if hasattr(executor, "phases") else {}
    click.echo("| phase | s |\n|---|---|")
    click.echo(f"| Python and imports | {before:.2f} |")
    for name, seconds in phases.seconds.items():
        click.echo(f"| {name} | {seconds:.2f} |")
        if name == "loading the engine":
            for part, part_seconds in of_engine.items():
                click.echo(f"| of it: {part} | {part_seconds:.2f} |")
    total = before + sum(phases.seconds.values()) - phases.seconds["first token again"]
    click.echo(f"| from the start to the first token | {total:.2f} |")


def _prompt(length: int, first: int, vocab_size: int) -> list[int]:
    return [index % vocab_size for index in range(first, first + length)]


def _seconds_since_start() -> float:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[_START_TIME - 2]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
