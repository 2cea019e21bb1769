"""A comparison as a table for the terminal, and as JSON.

Owns: which numbers are shown and how they are written. Must not measure or judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3moe_export.verify.compare import Comparison, StageResult

# Header and cell of every column behind the stage's name and its arithmetic.
COLUMNS: tuple[tuple[str, Callable[[StageResult], str]], ...] = (
    ("max err", lambda result: number(result.errors.max_abs)),
    ("mean err", lambda result: number(result.errors.mean_abs)),
    ("cos p5", lambda result: f"{result.errors.cosine_p5:.5f}"),
    ("KL mean", lambda result: number(result.errors.kl_mean)),
    ("KL max", lambda result: number(result.errors.kl_max)),
    ("top-1", lambda result: f"{result.errors.top1:.1%}"),
    ("ppl", lambda result: f"{result.errors.perplexity:.6g}"),
    ("Δ ppl", lambda result: number(result.errors.perplexity_diff, sign=True)),
    ("greedy", lambda result: greedy_text(result)),
    ("s", lambda result: seconds_text(result)),
)


def number(value: float, sign: bool = False) -> str:
    """Two digits, in powers of ten below 0.01."""
    plus = "+" if sign and value else ""
    return f"{value:{plus}.1e}" if 0 < abs(value) < 0.01 else f"{value:{plus}.2g}"


def greedy_text(result: StageResult) -> str:
    """Prompts that agree with the truth, and how many of them by leaving it at a tie."""
    greedy = result.greedy
    ties = f" ({greedy.num_ties}t)" if greedy.num_ties else ""
    return f"{greedy.num_agreeing}/{greedy.num_prompts}{ties}"


def seconds_text(result: StageResult) -> str:
    return "recorded" if result.description.is_recorded else f"{result.seconds:.1f}"


def verdict_text(result: StageResult) -> str:
    if result.passed is None:
        return str(result.description.role)
    return "pass" if result.passed else "FAIL"


def print_table(comparison: Comparison, console: Console) -> None:
    inputs = comparison.inputs
    table = Table(
        title=f"{inputs.num_tokens} tokens in {len(inputs.sequences)} sequences and {len(inputs.schedule)} steps, "
        f"from {inputs.source}",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("arithmetic", no_wrap=True)
    for header, _ in COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    colours = {True: "green", False: "bold red", None: "dim"}
    for result in comparison.results:
        cells = [cell(result) for _, cell in COLUMNS]
        verdict = f"[{colours[result.passed]}]{verdict_text(result)}[/]"
        table.add_row(result.description.name, str(result.description.precision), *cells, verdict)
    console.width = max(console.width, table.__rich_measure__(console, console.options.update(width=500)).maximum)
    console.print(table)
    for line in difference_lines(comparison):
        console.print(line, style="dim", highlight=False)
    for result in comparison.results:
        for failure in result.failures:
            console.print(f"{result.description.name}: {failure}", style="red", highlight=False)
    console.print("[green]passed[/]" if comparison.passed else "[bold red]failed[/]")


def difference_lines(comparison: Comparison) -> list[str]:
    """One line for each continuation that left the truth's."""
    return [
        f"{result.description.name} ({result.description.precision}): prompt {item.prompt}, new token {item.position}: "
        f"{item.got}, not {item.expected}, {item.gap:.3g} apart in the truth: {'a tie' if item.is_tie else 'wrong'}"
        for result in comparison.results
        for item in result.greedy.differences
    ]


def to_json(comparison: Comparison) -> str:
    """Numbers that are not finite become null."""
    inputs = comparison.inputs
    values = {
        "passed": comparison.passed,
        "inputs": {
            "source": inputs.source,
            "num_tokens": inputs.num_tokens,
            "lengths": [len(sequence) for sequence in inputs.sequences],
            "num_steps": len(inputs.schedule),
            "prompt_lengths": [len(prompt) for prompt in inputs.prompts],
            "max_new_tokens": inputs.max_new_tokens,
        },
        "gate": asdict(comparison.gate),
        "stages": [_as_dict(result) for result in comparison.results],
        "versions": comparison.versions,
    }
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _as_dict(result: StageResult) -> dict[str, Any]:
    description = result.description
    return {
        "name": description.name,
        "role": description.role,
        "is_recorded": description.is_recorded,
        "weights": description.precision.weights,
        "arithmetic": description.precision.arithmetic,
        "seconds": round(result.seconds, 3),
        "passed": result.passed,
        "failures": list(result.failures),
        "errors": asdict(result.errors),
        "limits": asdict(result.limits) if result.limits else None,
        "layer_curve": result.curve,
        "greedy": asdict(result.greedy) | {"num_agreeing": result.greedy.num_agreeing},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
