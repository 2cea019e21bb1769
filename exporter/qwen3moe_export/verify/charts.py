"""The report's plots, as SVG text to stand inside the page.

Owns: how a plot looks. Colours are CSS variables of the page (report.css), so that plots follow its light or dark
theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from qwen3moe_export.verify.compare import Comparison, StageResult
from qwen3moe_export.verify.metrics import HISTOGRAM_EDGES

# matplotlib draws in these, and the page maps each to a variable: ink, grid, then a series colour for each stage.
_INK, _GRID = "#010101", "#020202"
_SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306", "#030307", "#030308")
_VARIABLES = {_INK: "--muted", _GRID: "--line"} | {colour: f"--s{index}" for index, colour in enumerate(_SERIES)}
_FLOOR = 1e-16  # of KL divergences on a log axis: two equal distributions have none
_SIZE = (6.4, 3.1)  # inches: two plots a row of the page

Shown = Sequence[tuple[int, StageResult]]  # stages but the truth, with the number of their colour


def charts(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Title, a sentence on how to read it, and SVG of each plot."""
    shown = list(enumerate(comparison.results))[1:]
    with_curve = [(index, result) for index, result in shown if result.curve]
    plots: list[tuple[str, str, Callable[[Any], None]]] = [
        (
            "Error by layer",
            "Relative L2 error of what enters each layer. A step up shows where.",
            lambda axes: _layers(axes, with_curve),
        ),
        (
            "Logit errors",
            "Distribution of the absolute errors of all logits. Same precision, same place.",
            lambda axes: _histogram(axes, shown),
        ),
        (
            "KL divergence by position",
            "Of the next-token distributions from the reference's, smallest first; nats.",
            lambda axes: _divergence(axes, shown),
        ),
        (
            "Perplexity",
            "Difference from the reference's perplexity.",
            lambda axes: _perplexity(axes, shown),
        ),
    ]
    return [(title, hint, _svg(title, draw)) for title, hint, draw in plots if title != "Error by layer" or with_curve]


def _layers(axes: Any, shown: Shown) -> None:
    for index, result in shown:
        assert result.curve is not None
        values = [value if value > 0 else np.nan for value in result.curve]
        axes.plot(values, color=_SERIES[index % len(_SERIES)], marker="o", markersize=3, linewidth=1.6)
    num_layers = len(shown[0][1].curve or ()) - 1
    axes.set_yscale("log")
    axes.set_xlim(-0.2, num_layers + 0.2)
    axes.set_xlabel(f"layer ({num_layers} is the final norm)")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _histogram(axes: Any, shown: Shown) -> None:
    centres = np.sqrt(HISTOGRAM_EDGES[:-1] * HISTOGRAM_EDGES[1:])
    used = np.zeros(len(centres), bool)
    for index, result in shown:
        counts = result.positions.histogram.astype(float)
        counts[0] = 0  # exact or nearly so
        share = counts / max(1.0, result.positions.histogram.sum())
        used |= share > 0
        colour = _SERIES[index % len(_SERIES)]
        axes.plot(centres, share, color=colour, linewidth=1.6)
        axes.fill_between(centres, share, color=colour, alpha=0.10, linewidth=0)
    axes.set_xscale("log")
    if used.any():
        axes.set_xlim(centres[used][0] / 2, centres[used][-1] * 2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("absolute logit error")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))


def _divergence(axes: Any, shown: Shown) -> None:
    for index, result in shown:
        values = np.sort(np.maximum(np.nan_to_num(result.positions.kl, nan=np.inf), _FLOOR))
        values[np.isinf(values)] = np.nan
        axes.plot(np.linspace(0, 1, len(values)), values, color=_SERIES[index % len(_SERIES)], linewidth=1.6)
    axes.set_yscale("log")
    axes.set_xlabel("share of positions")
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))


def _perplexity(axes: Any, shown: Shown) -> None:
    differences = [result.errors.perplexity_diff for _, result in shown]
    rows = np.arange(len(shown))[::-1]
    colours = [_SERIES[index % len(_SERIES)] for index, _ in shown]
    axes.barh(rows, differences, color=colours, height=0.55)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(rows, [f"{result.description.name}, {result.description.precision}" for _, result in shown])
    largest = max((abs(value) for value in differences if np.isfinite(value)), default=0.0) or 1e-9
    axes.set_xlim(-1.35 * largest, 1.35 * largest)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for row, value in zip(rows, differences, strict=True):
        axes.annotate(
            f"{value:+.2g}", (value if np.isfinite(value) else 0, row), color=_INK, va="center", fontsize=8,
            ha="left" if value >= 0 else "right", xytext=(4 if value >= 0 else -4, 0), textcoords="offset points",
        )  # fmt: skip
    axes.grid(axis="y", visible=False)


def _svg(title: str, draw: Callable[[Any], None]) -> str:
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif",
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _GRID, "xtick.color": _INK,
        "ytick.color": _INK, "grid.color": _GRID, "grid.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0,
        "ytick.minor.size": 0, "xtick.minor.size": 0,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """The svg element alone, as wide as its place, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', svg, count=1)
    svg = re.sub(r'height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
