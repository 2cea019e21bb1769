"""A plot of times by case, beside the bound and a peer. Owns: how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3moe_export.cli.bench_row import Row

BAR_WIDTH = 0.27


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of milliseconds, on a logarithmic axis, in the format that the path's suffix names."""
    from matplotlib.figure import Figure

    columns: dict[str, list[float | None]] = {
        "bound": [row.bound for row in rows],
        "this engine": [row.median for row in rows],
        "peer": [row.peer for row in rows],
    }
    shown = {name: values for name, values in columns.items() if any(values)}
    figure = Figure(figsize=(1.5 + 1.1 * len(rows), 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for number, (name, values) in enumerate(shown.items()):
        heights = [np.nan if value is None else value for value in values]
        axes.bar(places + (number - (len(shown) - 1) / 2) * BAR_WIDTH, heights, BAR_WIDTH, label=name)
    axes.set_yscale("log")
    axes.set_xticks(places, [row.name for row in rows])
    axes.set_ylabel("ms")
    axes.legend()
    figure.savefig(path, format=path.suffix[1:])
