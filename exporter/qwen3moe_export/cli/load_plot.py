"""Plots of a load: how latencies are distributed, and throughput over time. Owns: how they look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.bench.figures import Latencies
from qwen3moe_engine.bench.record import RequestRecord

FORMATS = (".png", ".svg", ".pdf")
_STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd"}
_NUM_BINS = 60
_LEAST = 0.1  # ms on an axis: parts that arrive together are microseconds apart


def write_plot(records: Sequence[RequestRecord], title: str, path: Path) -> None:
    """In the format that the path's suffix names."""
    import matplotlib
    from matplotlib.figure import Figure

    latencies = Latencies.of(records)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        requests, tokens, throughput = figure.subplots(1, 3)
        _cumulative(requests, {"TTFT": latencies.ttft, "E2E": latencies.e2e}, "requests")
        _cumulative(tokens, {"ITL": latencies.itl, "TPOT": latencies.tpot}, "parts, requests")
        _throughput(throughput, records)
        figure.suptitle(title, fontsize=9)
        figure.savefig(path, format=path.suffix[1:])


def _cumulative(axes: Any, series: dict[str, list[float]], of_what: str) -> None:
    for name, seconds in series.items():
        if seconds:
            axes.step(np.sort(seconds) * 1e3, np.arange(1, len(seconds) + 1) / len(seconds), label=name)
    axes.set_xscale("log")
    axes.set_xlim(left=max(axes.get_xlim()[0], _LEAST))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("ms")
    axes.set_ylabel(f"share of {of_what}")
    if any(series.values()):
        axes.legend()


def _throughput(axes: Any, records: Sequence[RequestRecord]) -> None:
    """Output tokens a second, and requests in flight on an axis of their own."""
    start, end = min(record.start for record in records), max(record.end for record in records)
    edges = np.linspace(0, end - start, _NUM_BINS + 1)
    axes.stairs(tokens_per_second(records, start, edges), edges, fill=True, alpha=0.4)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("s")
    axes.set_ylabel("output tokens/s")
    in_flight = axes.twinx()
    in_flight.plot(edges, num_in_flight(records, start + edges), color="#333333", linewidth=1)
    in_flight.set_ylim(bottom=0)
    in_flight.set_ylabel("requests in flight")
    in_flight.grid(visible=False)


def tokens_per_second(records: Sequence[RequestRecord], start: float, edges: NDArray[np.float64]) -> NDArray:
    """In bins of time behind `start`; a request's tokens are spread evenly over the parts they came in."""
    times = [time - start for record in records for time in record.chunk_times]
    weights = [record.num_output / len(record.chunk_times) for record in records for _ in record.chunk_times]
    return np.histogram(times, edges, weights=weights)[0] / np.diff(edges)


def num_in_flight(records: Sequence[RequestRecord], times: NDArray[np.float64]) -> NDArray:
    starts, ends = (np.sort([getattr(record, name) for record in records]) for name in ("start", "end"))
    return np.searchsorted(starts, times, "right") - np.searchsorted(ends, times, "right")
