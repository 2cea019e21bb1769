"""How far a stage's logits and hidden states are from the truth's.

Owns: every formula, in numpy and fp64. Must not know stages or what is good enough.

Legend: T positions of all sequences, V vocab_size, H hidden_size, L num_layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 16  # positions at a time: V is 151,936 in published models, and fp64 copies of all rows would take gigabytes

# Of the histogram of absolute errors: four bins a decade from 1e-9 (below: the first bin) to 1e2. fp32 errors are small
# multiples of the spacing of fp32, so finer bins would show a comb.
HISTOGRAM_EDGES = np.logspace(-9, 2, 45)


@dataclass(frozen=True)
class PositionErrors:
    """Per position, fp64 [T] where nothing else is said; in the order of the sequences.

    max_abs, mean_abs: of the logit errors over the vocabulary. kl: KL(truth || stage) in nats. same_top1: bool [T].
    nll, truth_nll: -log p of the next token in nats, without the last position of each sequence. histogram: how many of
    all T * V errors lie between HISTOGRAM_EDGES, int64.
    """

    max_abs: NDArray[np.float64]
    mean_abs: NDArray[np.float64]
    cosine: NDArray[np.float64]
    kl: NDArray[np.float64]
    same_top1: NDArray[np.bool_]
    nll: NDArray[np.float64]
    truth_nll: NDArray[np.float64]
    histogram: NDArray[np.int64]


@dataclass(frozen=True)
class LogitErrors:
    """`PositionErrors` in single numbers. mean_abs: over all logits. median_abs: over positions, of their mean_abs.
    cosine_p5: 5th percentile over positions. kl_*: in nats. top1: share of positions with the same most likely token.
    perplexity: exp of the mean nll; perplexity_diff: minus the truth's."""

    max_abs: float
    mean_abs: float
    median_abs: float
    cosine_p5: float
    kl_mean: float
    kl_max: float
    top1: float
    perplexity: float
    perplexity_diff: float


def position_errors(
    truth: Sequence[NDArray[np.float32]], got: Sequence[NDArray[np.float32]], tokens: Sequence[NDArray[np.int32]]
) -> PositionErrors:
    """Logits [length, V] of each sequence, whose ids [length] give the next token at each position."""
    parts = [
        _block_errors(expected[start : start + _ROWS], found[start : start + _ROWS], ids[start + 1 : start + 1 + _ROWS])
        for expected, found, ids in zip(truth, got, tokens, strict=True)
        for start in range(0, len(ids), _ROWS)
    ]
    *columns, histograms = zip(*parts, strict=True)
    fields = [np.concatenate(column) for column in columns] + [np.sum(histograms, axis=0)]
    return PositionErrors(*fields)


def summarise(errors: PositionErrors) -> LogitErrors:
    with np.errstate(over="ignore"):
        perplexity, truth_perplexity = (
            float(np.exp(nll.mean())) if len(nll) else float("nan") for nll in (errors.nll, errors.truth_nll)
        )
    return LogitErrors(
        max_abs=float(errors.max_abs.max()),
        mean_abs=float(errors.mean_abs.mean()),
        median_abs=float(np.median(errors.mean_abs)),
        cosine_p5=float(np.percentile(errors.cosine, 5)),
        kl_mean=float(errors.kl.mean()),
        kl_max=float(errors.kl.max()),
        top1=float(errors.same_top1.mean()),
        perplexity=perplexity,
        perplexity_diff=perplexity - truth_perplexity,
    )


def layer_curve(truth: Sequence[NDArray[np.float32]], got: Sequence[NDArray[np.float32]]) -> tuple[float, ...]:
    """Relative L2 error of what enters each layer and the final norm, over all positions: L + 1 numbers from hidden
    states [L + 1, length, H] of each sequence."""
    difference = sum(_squares(a.astype(np.float64) - b) for a, b in zip(got, truth, strict=True))
    norm = sum(_squares(b) for b in truth)
    return tuple(float(value) for value in np.sqrt(difference / np.maximum(norm, np.finfo(np.float64).tiny)))


def _squares(states: NDArray) -> NDArray[np.float64]:
    return np.square(states, dtype=np.float64).sum(axis=(1, 2))


def _block_errors(
    truth: NDArray[np.float32], got: NDArray[np.float32], next_ids: NDArray[np.int32]
) -> tuple[NDArray, ...]:
    """The fields of PositionErrors for some rows; the last may have no next token."""
    p_logits, q_logits = truth.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN are for the gate to refuse
        error = np.abs(q_logits - p_logits)
        log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
        kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        norms = np.linalg.norm(p_logits, axis=-1) * np.linalg.norm(q_logits, axis=-1)
        cosine = (p_logits * q_logits).sum(-1) / norms
    rows = np.arange(len(next_ids))
    return (
        error.max(-1), error.mean(-1), cosine, kl, truth.argmax(-1) == got.argmax(-1),
        -log_q[rows, next_ids], -log_p[rows, next_ids],
        np.histogram(np.clip(error[np.isfinite(error)], HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0],
    )  # fmt: skip


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
