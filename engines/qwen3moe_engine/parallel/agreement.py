"""What ranks must have in common before they start: a group of which one runs another plan gives garbage, not an error.

Owns: the comparison. What is compared is each runtime's `facts`.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3moe_engine.layout import Layout
from qwen3moe_engine.parallel.rank import Facts
from qwen3moe_plugins.errors import InputError


def check_agreement(facts: Sequence[Facts], layout: Layout) -> None:
    """Raises InputError naming the first rank that differs from rank 0, or from the first of its stage, and in what."""
    for rank, found in enumerate(facts):
        first_of_stage = layout.stage_of(rank) * layout.group_size
        _compare(rank, found.shared, 0, facts[0].shared)
        _compare(rank, found.of_stage, first_of_stage, facts[first_of_stage].of_stage)


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
