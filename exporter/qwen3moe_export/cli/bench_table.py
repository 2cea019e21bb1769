"""What measurements of an engine share: the engine, and the table beside the bound and a peer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import click

from qwen3moe_engine.bench.steps import StepClock
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_export.cli.bench_op_row import OpRow
from qwen3moe_export.cli.bench_plot import write_plot
from qwen3moe_export.cli.bench_row import HEADER, Row
from qwen3moe_export.cli.executors import load_engine
from qwen3moe_export.cli.load_plot import FORMATS
from qwen3moe_export.cli.option_group import option_group
from qwen3moe_export.cli.output_file import check_folder, write_text, write_whole
from qwen3moe_plugins.errors import InputError

T = TypeVar("T")
R = TypeVar("R", Row, OpRow)


@dataclass(frozen=True)
class Files:
    """What is written beside the table."""

    json: Path | None
    plot: Path | None


def _files(json_path: Path | None, plot: Path | None) -> Files:
    """Raises InputError for what could not be written."""
    for path in (json_path, plot):
        check_folder(path)
    if plot is not None and plot.suffix not in FORMATS:
        expected = f"a file {', '.join(FORMATS)}"
        raise InputError("--plot", got=str(plot), expected=expected, remedy="name one of these formats")
    return Files(json_path, plot)


_PATH = click.Path(path_type=Path, dir_okay=False)
file_options = option_group(
    "files",
    _files,
    (
        click.option("--json", "json_path", type=_PATH, help="Where to write the rows."),
        click.option("--plot", type=_PATH, help=f"Draw them there: {', '.join(FORMATS)}."),
    ),
)


def open_clock(opened: OpenedExport, batches: Sequence[Sequence[int]]) -> StepClock:
    """Over an engine whose KV pool holds each of `batches`: sequences of so many tokens."""
    num_blocks = max(sum(num_blocks_for(tokens, opened.capacity.block_size) for tokens in batch) for batch in batches)
    engine = load_engine(opened, num_blocks)
    return StepClock(engine, opened.manifest.dims.vocab_size, opened.capacity.max_step_tokens)


def report(
    cases: Sequence[T],
    measure: Callable[[T], R],
    files: Files,
    header: Sequence[str] = HEADER,
    unit: str = "ms",
    panel_of: Callable[[R], str] = lambda row: "",
) -> None:
    """Measures case by case, with a row of the table for each, and writes `files` when all are done. panel_of: rows of
    the same are drawn beside each other."""
    click.echo("\n".join(("| " + " | ".join(header) + " |", "|---" * len(header) + "|")))
    rows: list[R] = []
    for case in cases:
        rows.append(measure(case))
        click.echo("| " + " | ".join(rows[-1].cells) + " |")
    if files.json is not None:
        write_text(files.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if files.plot is not None:
        panels = [list(panel) for _, panel in itertools.groupby(rows, panel_of)]
        write_whole(files.plot, lambda path: write_plot(panels, unit, path))


def parse_sizes(text: str, option: str, example: str) -> list[int]:
    """Positive numbers with commas between. Raises InputError."""
    items = text.split(",")
    if not all(item.isdigit() and int(item) > 0 for item in items):
        raise InputError(option, got=repr(text), expected=f"such as {example}", remedy="write it so")
    return [int(item) for item in items]


def read_peer(path: Path | None) -> dict[str, float]:
    """A peer's times by name of a row, in the table's unit; none without a file. Raises InputError."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text())
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError) as error:
        expected = 'an object such as {"1x1024": 4.1}'
        raise InputError(str(path), got=str(error), expected=expected, remedy="write times by row") from None
