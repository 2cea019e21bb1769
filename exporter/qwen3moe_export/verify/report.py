"""The comparison as one HTML page: the verdict, the table, the plots. Everything is inside the file.

Owns: what the page says. report.html lays it out, report.css colours it, charts draws.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import jinja2

from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.verify.charts import charts
from qwen3moe_export.verify.compare import Comparison, StageResult
from qwen3moe_export.verify.table import COLUMNS, number, verdict_text

_FOLDER = Path(__file__).parent


def render(comparison: Comparison, name: str, tokenizer: Tokenizer | None) -> str:
    """The page, for the checkpoint `name`; `tokenizer` turns ids into text where there is one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    judged = [result for result in comparison.results if result.passed is not None]
    return environment.get_template("report.html").render(
        name=name,
        css=(_FOLDER / "report.css").read_text(encoding="utf-8"),
        passed=comparison.passed,
        num_passed=sum(bool(result.passed) for result in judged),
        num_judged=len(judged),
        inputs=comparison.inputs,
        headers=[header for header, _ in COLUMNS],
        rows=[_row(index, result) for index, result in enumerate(comparison.results)],
        failures=[(result.description.name, line) for result in judged for line in result.failures],
        charts=charts(comparison),
        differences=[
            _difference(result, item, tokenizer) for result in comparison.results for item in result.greedy.differences
        ],
        gate=asdict(comparison.gate),
        versions=comparison.versions,
    )


def _row(index: int, result: StageResult) -> dict[str, object]:
    limits = result.limits
    return {
        "series": f"s{index}" if index else "",
        "name": result.description.name,
        "precision": str(result.description.precision),
        "cells": [cell(result) for _, cell in COLUMNS],
        "limits": [number(limits.max_abs), number(limits.mean_abs)] if limits else [],
        "verdict": verdict_text(result),
        "state": {True: "pass", False: "fail", None: "none"}[result.passed],
    }


def _difference(result: StageResult, item: object, tokenizer: Tokenizer | None) -> dict[str, object]:
    values = dict(vars(item))
    for key in ("expected", "got"):
        values[key] = f"{tokenizer.decode([values[key]])!r} {values[key]}" if tokenizer else str(values[key])
    values["gap"] = f"{values['gap']:.3g}"
    return values | {"stage": f"{result.description.name}, {result.description.precision}"}
