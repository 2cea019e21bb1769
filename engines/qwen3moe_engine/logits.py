"""A step's logits, where the executor left them.

Owns: the seam between an executor and the sampler, and its form on the host. Must not know requests.

Legend: N rows of logits, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.sampling_rule import draw, without_nan


class Draw(NamedTuple):
    """By what a row's token is drawn. offset: the token's index among the request's new ones, the Philox counter."""

    params: SamplingParams
    offset: int


class Logits(Protocol):
    """Rows [N, V] in fp32, good until the executor's next step."""

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        """Tokens of the first rows, one for each of `draws`, by the rule of `sampling_rule`."""
        ...

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Those rows, or all, on the host: [len(indices), V]."""
        ...


class Drawn(Protocol):
    """Tokens that are being drawn."""

    def tokens(self) -> list[int]:
        """By row of logits. Waits until the step has ended."""
        ...


@dataclass(frozen=True)
class HostLogits:
    """Rows [N, V] in the host's memory."""

    values: NDArray[np.float32]

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        tokens = greedy(self.values)[: len(draws)]  # all that most batches need, in one pass
        for row, given in enumerate(draws):
            if given.params.temperature > 0:
                tokens[row] = draw(self.values[row], given.params, given.offset)
        return tokens

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        return self.values if indices is None else self.values[list(indices)]


def greedy(logits: NDArray[np.float32]) -> list[int]:
    """The most likely token of each row [N, V]; of equal logits the lower id. A NaN counts as -inf."""
    tokens = logits.argmax(axis=-1)
    for row in np.flatnonzero(np.isnan(logits[np.arange(len(logits)), tokens])):  # argmax finds NaN first
        tokens[row] = without_nan(logits[row]).argmax()
    return tokens.tolist()
