"""From logits to tokens, for the whole batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_greedy(logits: NDArray[np.float32]) -> list[int]:
    """The most likely token of each row [N, vocab_size]; of equal logits the lower id."""
    return logits.argmax(axis=-1).tolist()
