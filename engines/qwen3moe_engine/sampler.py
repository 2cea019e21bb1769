"""From logits to tokens, for the whole batch, on the host.

Owns: nothing between steps. Each row is drawn by its own request's parameters, seed and index of token, so that it
does not matter which rows are beside it, nor how often the request was preempted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.logit_adjustments import adjust_logits
from qwen3moe_engine.logprobs import TokenLogprobs, token_logprobs
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_rule import draw, without_nan


def sample_batch(logits: NDArray[np.float32], requests: Sequence[Request], eos_token_ids: tuple[int, ...]) -> list[int]:
    """The next token of each request; its logits are the row [vocab_size] of the same index."""
    tokens = sample_greedy(logits)[: len(requests)]  # all that most batches need, in one pass
    for row, request in enumerate(requests):
        params = request.params
        if params.temperature > 0 or params.adjusts_logits:
            adjusted = adjust_logits(logits[row], request, eos_token_ids)
            tokens[row] = draw(adjusted, params, len(request.output_ids))
    return tokens


def sample_greedy(logits: NDArray[np.float32]) -> list[int]:
    """The most likely token of each row [N, vocab_size]; of equal logits the lower id. A NaN counts as -inf."""
    tokens = logits.argmax(axis=-1)
    for row in np.flatnonzero(np.isnan(logits[np.arange(len(logits)), tokens])):  # argmax finds NaN first
        tokens[row] = without_nan(logits[row]).argmax()
    return tokens.tolist()


def batch_logprobs(
    logits: NDArray[np.float32], requests: Sequence[Request], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    """For the requests that ask for them, of the tokens just drawn from the model's logits."""
    wanted = [request.params.logprobs for request in requests]
    return [
        None if num_best is None else token_logprobs(logits[row], tokens[row], num_best)
        for row, num_best in enumerate(wanted)
    ]
