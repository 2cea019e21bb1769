"""How often a graph calls an operator, so that each call finds its weights or keys in memory and not in L2.

Owns: these numbers. Must not know CUDA.
"""

from __future__ import annotations

import math

CACHES_FULL = 4
MIN_CALLS, MAX_CALLS = 8, 128


def num_calls(num_bytes: float, l2_bytes: int) -> int:
    """Of a graph whose calls move `num_bytes` each."""
    return min(MAX_CALLS, max(MIN_CALLS, _to_fill(num_bytes, l2_bytes)))


def num_copies(num_bytes: float, l2_bytes: int) -> int:
    """Of something of `num_bytes` that calls use in turns."""
    return min(MAX_CALLS, max(2, _to_fill(num_bytes, l2_bytes)))


def _to_fill(num_bytes: float, l2_bytes: int) -> int:
    return math.ceil(CACHES_FULL * l2_bytes / num_bytes)
