"""The seam between a stage and what compares it.

Owns: how a stage is described and what it gives. Must not know how any stage computes, nor the metrics.

Legend: H hidden_size, L num_layers, V vocab_size, P prompts, N new tokens, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen3moe_export.verify.inputs import Inputs

AS_STORED = "stored"
NUM_CANDIDATES = 8

# The truth is what every other stage is compared to. A baseline is the plain reference at a lower precision: what it
# loses sets the tolerance of the judged stages of that precision.
Role = Literal["truth", "baseline", "judged"]


@dataclass(frozen=True)
class Precision:
    """weights: the dtype they were rounded to, `stored` if that changed none of them. arithmetic: of activations."""

    weights: str
    arithmetic: str

    def __str__(self) -> str:
        same = self.weights in (AS_STORED, self.arithmetic)
        return self.arithmetic if same else f"{self.arithmetic}, w {self.weights}"


@dataclass(frozen=True)
class StageDescription:
    """is_recorded: its outputs are read from a golden bundle."""

    name: str
    precision: Precision
    role: Role
    is_recorded: bool = False


@dataclass(frozen=True)
class Greedy:
    """token_ids: int32 [P, N]. candidate_ids, candidate_logits: the K most likely tokens at each, int32 and fp32
    [P, N, K], best first; the truth has them, so that a tie can be told from a mistake."""

    token_ids: NDArray[np.int32]
    candidate_ids: NDArray[np.int32] | None = None
    candidate_logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StageOutputs:
    """For each sequence fp32 logits [length, V] and, where the stage shows them, what enters each layer and the final
    norm: fp32 [L + 1, length, H]."""

    logits: tuple[NDArray[np.float32], ...]
    hidden_states: tuple[NDArray[np.float32], ...] | None
    greedy: Greedy


@dataclass(frozen=True)
class Stage:
    """`run` loads the model, computes and lets go of it, so that only one stage's weights are in memory at a time."""

    description: StageDescription
    run: Callable[[Inputs], StageOutputs]
