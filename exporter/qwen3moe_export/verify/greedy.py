"""Greedy continuations against the truth's.

A stage may leave the truth's path without being wrong: where two tokens are about equally likely, rounding decides. So
the first difference of each prompt is looked at in the truth's own logits; what follows is another text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_export.verify.stages import Greedy


@dataclass(frozen=True)
class FirstDifference:
    """Where a continuation leaves the truth's. gap: the truth's logit of its own token minus that of the stage's token
    (if that is not among the truth's candidates, of the last candidate: the gap is at least this). is_tie: within the
    tolerance."""

    prompt: int
    position: int
    expected: int
    got: int
    gap: float
    is_tie: bool


@dataclass(frozen=True)
class GreedyResult:
    """num_equal: tokens before the first differences, of num_prompts * num_new."""

    num_prompts: int
    num_new: int
    num_equal: int
    differences: tuple[FirstDifference, ...]

    @property
    def num_agreeing(self) -> int:
        """Prompts whose continuation is the truth's, or left it at a tie."""
        return self.num_prompts - sum(not difference.is_tie for difference in self.differences)

    @property
    def num_ties(self) -> int:
        return sum(difference.is_tie for difference in self.differences)


def compare_greedy(truth: Greedy, got: Greedy, tolerance: float) -> GreedyResult:
    """`tolerance`: of a difference of two logits."""
    num_prompts, num_new = truth.token_ids.shape
    firsts = [
        _first_difference(expected, found) for expected, found in zip(truth.token_ids, got.token_ids, strict=True)
    ]
    differences = tuple(
        _describe(truth, prompt, position, int(got.token_ids[prompt, position]), tolerance)
        for prompt, position in enumerate(firsts)
        if position < num_new
    )
    return GreedyResult(num_prompts, num_new, sum(firsts), differences)


def _first_difference(expected: NDArray[np.int32], got: NDArray[np.int32]) -> int:
    """Its index, or the length if there is none."""
    return int(np.argmax(np.append(expected != got, True)))


def _describe(truth: Greedy, prompt: int, position: int, got: int, tolerance: float) -> FirstDifference:
    assert truth.candidate_ids is not None and truth.candidate_logits is not None
    ids, logits = truth.candidate_ids[prompt, position], truth.candidate_logits[prompt, position]
    (found,) = np.nonzero(ids == got)
    gap = float(logits[0] - logits[found[0] if len(found) else -1])
    is_tie = len(found) > 0 and gap <= tolerance
    return FirstDifference(prompt, position, int(truth.token_ids[prompt, position]), got, gap, is_tie)
