"""What measurements of an engine share: the engine, and the table beside the bound and a peer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from qwen3moe_engine.bench.steps import StepClock, Times
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_export.cli.executors import load_engine
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class Row:
    """Times in milliseconds. name: as in the file of a peer's figures. bound: by memory traffic, None if not known."""

    name: str
    median: float
    p90: float
    tokens_per_second: float
    bound: float | None = None
    peer: float | None = None

    @property
    def cells(self) -> list[str]:
        bound = [f"{self.bound:.2f}", f"{100 * self.bound / self.median:.0f} %"] if self.bound else ["", ""]
        peer = [f"{self.peer:.2f}", f"{self.peer / self.median:.2f}"] if self.peer else ["", ""]
        return [self.name, f"{self.median:.3f}", f"{self.p90:.3f}", f"{self.tokens_per_second:.0f}", *bound, *peer]


HEADER = ["case", "ms", "p90", "tok/s", "bound ms", "of the bound", "peer ms", "peer / ours"]


def open_clock(opened: OpenedExport, batches: list[tuple[int, int]]) -> StepClock:
    """Over an engine whose KV pool holds each of `batches`: so many sequences of so many tokens."""
    num_blocks = max(count * num_blocks_for(length, opened.capacity.block_size) for count, length in batches)
    engine = load_engine(opened, num_blocks)
    return StepClock(engine, opened.manifest.dims.vocab_size, opened.capacity.max_step_tokens)


def make_row(name: str, times: Times, num_tokens: int, bound: float | None, peer: float | None) -> Row:
    return Row(name, times.median, times.percentile(90), num_tokens / times.median * 1e3, bound, peer)


def report(cases: Sequence, measure: Callable[..., Row], json_path: Path | None) -> None:
    click.echo("\n".join(("| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|")))
    rows = []
    for case in cases:
        rows.append(measure(case))
        click.echo("| " + " | ".join(rows[-1].cells) + " |")
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def parse_sizes(text: str, option: str, count: int, example: str) -> list[list[int]]:
    """Positive numbers with `x` between them, `count` of them in each item. Raises InputError."""
    items = [item.split("x") for item in text.split(",")]
    if not all(len(item) == count and all(part.isdigit() and int(part) > 0 for part in item) for item in items):
        raise InputError(option, got=repr(text), expected=f"such as {example}", remedy="write it so")
    return [[int(part) for part in item] for item in items]


def read_peer(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text())
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError) as error:
        expected = 'an object such as {"1x1024": 4.1}'
        raise InputError(str(path), got=str(error), expected=expected, remedy="write milliseconds by case") from None
