"""The sampling rule for one row of logits, in numpy: the token that the kernel in plugins/src/kernels/sample.cu draws.

Owns: the rule on the host. Each fp32 operation is rounded by itself and sums are of whole numbers, so the token is the
kernel's, whatever the order of additions. Where the kernel searches by radix, this sorts no more of the row than it
needs; tests/plugins/test_sample.py holds both against a plain third writing that sorts it all.
Legend: V vocab_size, N tokens kept so far.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.sampling_params import SamplingParams

F32 = np.float32
LOG2_E = F32(1.44269504)
EXP2_COEFFICIENTS = tuple(
    map(F32, (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0))
)
MIN_EXPONENT = F32(-40)  # a token 2^40 times less likely than the first weighs nothing
UNIT = F32(2**40)  # the weight of the most likely token
FIRST_NUCLEUS = 1024  # tokens to look for the nucleus in; text rarely needs more


def draw(logits: NDArray[np.float32], params: SamplingParams, offset: int) -> int:
    """The token of a row [V]; `offset` is its index among the request's new tokens, the counter of Philox."""
    logits = without_nan(logits)
    best, vocab_size = int(logits.argmax()), len(logits)
    with np.errstate(divide="ignore", over="ignore"):
        scale = LOG2_E / F32(params.temperature)
    if not (np.isfinite(scale) and np.isfinite(logits[best])):
        return best
    limited = 0 < params.top_k < vocab_size
    tokens = np.sort(first_in_order(logits, params.top_k)) if limited else np.arange(vocab_size)
    with np.errstate(over="ignore", invalid="ignore"):  # logits as far apart as floats go, -inf at a scale of 0
        weights = weigh((logits[tokens] - logits[best]) * scale, F32(params.min_p))
    if F32(params.top_p) < 1:
        kept = nucleus(logits[tokens], weights, float(F32(params.top_p)))
        tokens, weights = tokens[kept], weights[kept]
    running = np.cumsum(weights)
    assert params.seed is not None, "a request has a seed"
    drawn = philox(params.seed, offset) * int(running[-1]) >> 64
    return int(tokens[np.searchsorted(running, np.uint64(drawn), side="right")])


def without_nan(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """A NaN counts as -inf."""
    # argmax finds a NaN before any number, so a look at one logit spares a pass over the row
    return np.where(np.isnan(logits), F32(-np.inf), logits) if np.isnan(logits[logits.argmax()]) else logits


def first_in_order(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The first tokens by descending logit, then ascending index, [min(count, N)]; `logits` without NaN."""
    if count < len(logits):
        tokens = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    else:
        tokens = np.arange(len(logits))
    # Logit and index in one whole number, the first token's the least: the fastest sort will do, since nothing ties.
    # Bits of floats ascend as positive numbers do and descend as negative ones; + 0 makes -0 a 0.
    bits = (logits[tokens] + F32(0)).view(np.uint32)
    keys = np.where(bits >> 31, bits, 0x7FFFFFFF - bits).astype(np.uint64)
    places = np.sort(keys << np.uint64(32) | tokens.astype(np.uint64))
    return places[:count].astype(np.uint32).astype(np.int64)


def weigh(t: NDArray[np.float32], min_p: np.float32) -> NDArray[np.uint64]:
    """floor(2^40 2^t), and 0 below 2^-40 or min_p. 2^t is the polynomial of sample_math.cuh."""
    x = np.fmax(t, MIN_EXPONENT)
    whole = np.rint(x)
    x -= whole
    e = np.full_like(x, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        e *= x
        e += coefficient
    e *= (whole.astype(np.int32) + 127 << 23).view(F32)  # 2^whole
    e[~(t >= MIN_EXPONENT) | (e < min_p)] = 0
    return (e * UNIT).astype(np.uint64)


def nucleus(logits: NDArray[np.float32], weights: NDArray[np.uint64], top_p: float) -> NDArray[np.int64]:
    """Places, ascending, of the shortest beginning of the order that weighs at least top_p of all; at least one."""
    total = weights.sum()
    assert total > 0, "the best token weighs"
    target = np.uint64(max(1, math.ceil(top_p * float(total))))
    count = FIRST_NUCLEUS
    while True:
        first = first_in_order(logits, count)
        running = np.cumsum(weights[first])
        if running[-1] >= target:
            return np.sort(first[: np.searchsorted(running, target) + 1])
        count *= 8


def philox(seed: int, offset: int) -> int:
    """The first 64 bits of Philox4x32-10 (Salmon et al., 2011) with key `seed` and counter `offset`, low word first."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = offset & mask, offset >> 32, 0, 0
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = second >> 32 ^ c1 ^ k0, second & mask, first >> 32 ^ c3 ^ k1, first & mask
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return c1 << 32 | c0
