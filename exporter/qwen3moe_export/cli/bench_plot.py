"""A plot of times by case, beside the bound and a peer. Owns: how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BAR_WIDTH = 0.27


class PlottedRow(Protocol):
    """Times in the same unit."""

    @property
    def name(self) -> str: ...
    @property
    def median(self) -> float: ...
    @property
    def bound(self) -> float | None: ...
    @property
    def peer(self) -> float | None: ...


def write_plot(panels: Sequence[Sequence[PlottedRow]], unit: str, path: Path) -> None:
    """Panels of bars, on a logarithmic axis, in the format that the path's suffix names."""
    from matplotlib.figure import Figure

    widest = max(len(rows) for rows in panels)
    figure = Figure(figsize=(1.5 + 1.1 * widest, 3.6 * len(panels)), layout="constrained")
    for axes, rows in zip(np.atleast_1d(figure.subplots(len(panels))), panels, strict=True):
        _draw_bars(axes, rows, unit)
    figure.savefig(path, format=path.suffix[1:])


def _draw_bars(axes: Any, rows: Sequence[PlottedRow], unit: str) -> None:
    columns: dict[str, list[float | None]] = {
        "bound": [row.bound for row in rows],
        "ours": [row.median for row in rows],
        "peer": [row.peer for row in rows],
    }
    shown = {name: values for name, values in columns.items() if any(values)}
    places = np.arange(len(rows))
    for number, (name, values) in enumerate(shown.items()):
        heights = [np.nan if value is None else value for value in values]
        axes.bar(places + (number - (len(shown) - 1) / 2) * BAR_WIDTH, heights, BAR_WIDTH, label=name)
    axes.set_yscale("log")
    axes.set_xticks(places, [row.name for row in rows])
    axes.set_ylabel(unit)
    axes.legend()
