"""A decode step to measure: how many sequences, and how long each.

Owns: its form on the command line, and how unequal contexts are spread. Must not know engines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.bench.workload import LengthRange
from qwen3moe_plugins.errors import InputError

SEED = 0


@dataclass(frozen=True)
class StepCase:
    """Sequences with contexts in a range of tokens, which may be one number."""

    batch_size: int
    contexts: LengthRange

    @classmethod
    def parse(cls, text: str, option: str) -> StepCase:
        """Of `BATCHxCONTEXT` or `BATCHxLOW-HIGH`. Raises InputError."""
        batch_size, _, contexts = text.partition("x")
        if not batch_size.isdigit() or int(batch_size) < 1:
            expected = "sequences and their tokens, such as 8x1024 or 8x1-2047"
            raise InputError(option, got=repr(text), expected=expected, remedy="write it so")
        return cls(int(batch_size), LengthRange.parse(contexts, f"{option}: {text}"))

    def draw(self) -> list[int]:
        """Tokens of each sequence: spread evenly from the lowest to the highest, in random order, always the same. Two
        sequences or more have the sum that as many of the range's mean would have, but for its rounding."""
        spread = np.linspace(self.contexts.low, self.contexts.high, self.batch_size).round().astype(int)
        return np.random.default_rng(SEED).permutation(spread).tolist()

    def __str__(self) -> str:
        return f"{self.batch_size}x{self.contexts}"
