"""What the table says of a client that measures itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qwen3moe_engine.bench.figures import measure
from qwen3moe_engine.bench.record import RequestRecord
from qwen3moe_export.cli.load_table import print_figures


def table_of(*records: RequestRecord) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_figures(measure(records), "a [title]", console)
    return console.file.getvalue()


@pytest.mark.parametrize(("start", "is_late"), [(0.005, False), (0.02, True)])
def test_lateness_beside_the_time_to_first_token(start, is_late):
    text = table_of(RequestRecord(0.0, start, 1.0, (start + 0.1, 0.9), 3, 2))
    assert ("too slow for the load" in text) == is_late and "100.00" in text and "a [title]" in text


def test_errors_are_told_with_one_message_of_each_kind():
    text = table_of(*[RequestRecord(0, 0, 1, error=kind, message=f"[{kind}]") for kind in ("a", "b", "b")])
    assert text.index("b: 2, such as: [b]") < text.index("a: 1, such as: [a]") and "0 of 3 requests" in text
