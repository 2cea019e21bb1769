"""Figures of a load as a table for the terminal. Owns: which are shown and how they are written."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from qwen3moe_engine.bench.figures import Figures

LATENCIES = (
    ("ttft", "time to first token"),
    ("itl", "between parts of an output"),
    ("tpot", "per output token"),
    ("e2e", "end to end"),
    ("lateness", "sent after it was due"),
)
MOST_LATENESS = 0.1  # of the time to first token, both on average


def print_figures(figures: Figures, title: str, console: Console) -> None:
    console.print(title, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ms", no_wrap=True)
    for name in ("mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, text in LATENCIES:
        values = getattr(figures, name)
        cells = [f"{value:.2f}" for value in vars(values).values()] if values else ["-"] * 4
        table.add_row(f"{text}{'' if name == 'lateness' else f' ({name.upper()})'}", *cells)
    console.print(table)
    for line in summary_lines(figures):
        console.print(line, highlight=False, markup=False)
    for line in warning_lines(figures):
        console.print(line, highlight=False, markup=False, style="bold red")


def summary_lines(figures: Figures) -> list[str]:
    return [
        f"{figures.num_successful} of {figures.num_requests} requests in {figures.duration:.2f} s: "
        f"{figures.request_throughput:.2f} requests/s, {figures.output_throughput:.1f} output tokens/s, "
        f"{figures.total_throughput:.1f} tokens/s",
        f"{figures.num_prompt_tokens} prompt tokens, {figures.num_output_tokens} output tokens, "
        f"{figures.num_lost_tokens} lost",
    ]


def warning_lines(figures: Figures) -> list[str]:
    by_count = sorted(figures.errors.items(), key=lambda item: -item[1])
    lines = [f"{kind}: {count}, such as: {figures.messages[kind]}" for kind, count in by_count]
    if figures.lateness and figures.ttft and figures.lateness.mean > MOST_LATENESS * figures.ttft.mean:
        lines.append("This client was too slow for the load: requests were sent late, and tokens seen late.")
    return lines
