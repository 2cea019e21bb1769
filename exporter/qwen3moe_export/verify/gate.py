"""When a stage passes. The tolerance is derived from what the plain reference loses, not chosen.

Must not know how errors are measured or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_export.verify.greedy import GreedyResult
from qwen3moe_export.verify.metrics import PositionErrors
from qwen3moe_export.verify.stages import Precision

Phases = Mapping[str, NDArray[np.bool_]]  # as `Inputs.phases`


@dataclass(frozen=True)
class Limits:
    """The most that a stage's errors may be, in logits. median_abs: by phase, over its positions. num_beyond: positions
    that may exceed max_abs. tie: the most by which two logits of the truth may differ where the stage's greedy token is
    not the truth's."""

    mean_abs: float
    median_abs: dict[str, float]
    max_abs: float
    num_beyond: int
    tie: float


@dataclass(frozen=True)
class Gate:
    """A stage passes if its error <= factor * (error of the plain reference at the same precision) + eps.

    factor: two correct programs of one precision round at different places, so their errors are two draws from one
    distribution. Over 28 texts the mean error of the exported program was 0.46 to 1.12 times the plain reference's, in
    bf16 and fp16, and the median over the positions of a phase 0.68 to 1.11 times. 2 leaves room for other models.
    eps: logits. What fp32 programs that add up in different orders may differ by, on logits of a trained model (up to
    about 30, where the spacing of fp32 is 2e-6). It alone decides where the reference loses nothing.
    rerouted: share of positions that may exceed the limit on the maximum in 16-bit arithmetic. There a rounded router
    logit now and then chooses another expert of nearly equal weight, which moves that position's logits by as much in
    fp16 as in bf16. Which positions is chance: over those 28 texts the maximum of one program was 0.02 to 33 times that
    of the other, though at most one position in 344 was beyond the limit. In fp32 arithmetic no position may be.

    Medians are taken by phase (prefill, extend, decode): each is a path of its own through a kernel, and what goes
    wrong in decoding alone is lost in the median of all.
    """

    factor: float = 2.0
    eps: float = 1e-4
    rerouted: float = 0.01

    def limits(self, baseline: PositionErrors, precision: Precision, phases: Phases) -> Limits:
        """`baseline`: errors of the plain reference at `precision`."""
        max_abs = self._limit(baseline.max_abs.max())
        return Limits(
            mean_abs=self._limit(baseline.mean_abs.mean()),
            median_abs={name: self._limit(median) for name, median in _medians(baseline, phases).items()},
            max_abs=max_abs,
            num_beyond=0 if precision.arithmetic == "fp32" else int(self.rerouted * len(baseline.max_abs)),
            tie=max_abs,
        )

    def _limit(self, baseline: float) -> float:
        return float(self.factor * baseline + self.eps)


def failures(limits: Limits, positions: PositionErrors, greedy: GreedyResult, phases: Phases) -> tuple[str, ...]:
    """Why a stage does not pass; nothing if it does. An error that is not a finite number is within no limit."""
    failed, num_positions = [], len(positions.max_abs)
    num_broken = int((~np.isfinite(positions.max_abs)).sum())
    if num_broken:
        failed.append(f"logits that are not finite at {num_broken} of {num_positions} positions")
    mean = positions.mean_abs.mean()
    if not mean <= limits.mean_abs:
        failed.append(f"mean logit error {mean:.3g} > {limits.mean_abs:.3g}")
    for name, median in _medians(positions, phases).items():
        if not median <= limits.median_abs[name]:
            failed.append(f"median logit error in {name} {median:.3g} > {limits.median_abs[name]:.3g}")
    num_beyond = int((~(positions.max_abs <= limits.max_abs)).sum())
    if num_beyond > limits.num_beyond:
        failed.append(
            f"logit errors above {limits.max_abs:.3g} at {num_beyond} of {num_positions} positions, "
            f"{limits.num_beyond} allowed"
        )
    num_wrong = greedy.num_prompts - greedy.num_agreeing
    if num_wrong:
        failed.append(f"{num_wrong} of {greedy.num_prompts} continuations differ at more than a tie ({limits.tie:.3g})")
    return tuple(failed)


def _medians(positions: PositionErrors, phases: Phases) -> dict[str, float]:
    """Of the mean absolute logit errors of each phase's positions."""
    return {name: float(np.median(positions.mean_abs[mask])) for name, mask in phases.items()}
