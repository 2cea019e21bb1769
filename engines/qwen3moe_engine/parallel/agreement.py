"""What ranks must have in common before they start: a group of which one runs another plan gives garbage, not an error.

Owns: the comparison. What is compared is each runtime's `facts`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen3moe_engine.layout import Layout
from qwen3moe_engine.parallel.rank import Facts
from qwen3moe_plugins.errors import InputError


def check_agreement(facts: Mapping[int, Facts], layout: Layout) -> None:
    """`facts`: by rank. Raises InputError naming the first that differs from the first of all, or of its stage, and in
    what."""
    first_of_stage: dict[int, int] = {}
    for rank in sorted(facts):
        first, peer = min(facts), first_of_stage.setdefault(layout.stage_of(rank), rank)
        _compare(rank, facts[rank].shared, first, facts[first].shared)
        _compare(rank, facts[rank].of_stage, peer, facts[peer].of_stage)


def _compare(rank: int, found: dict[str, str], other: int, expected: dict[str, str]) -> None:
    for name in sorted({*found, *expected}):
        got, wanted = found.get(name, "none"), expected.get(name, "none")
        if got != wanted:
            raise InputError(
                f"rank {rank}: {name}",
                got=got,
                expected=f"{wanted} as on rank {other}",
                remedy="start every rank with one installation and one export",
            )
