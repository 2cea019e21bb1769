"""Log-probabilities of the tokens chosen, and of the best ones beside them.

They are the model's own: of the softmax of its logits, before temperature, penalties, bias and truncation, as vLLM
gives them (`raw_logprobs`). So they compare across requests, and with those of other engines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.sampling_rule import first_in_order, without_nan

MIN_LOGPROB = -9999.0  # instead of -inf, which JSON does not have; OpenAI's number


@dataclass(frozen=True)
class TokenLogprobs:
    """best: token ids with their log-probabilities, the most likely first; of equals the lower id."""

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_best: int) -> TokenLogprobs:
    """Of a token drawn from a row [vocab_size], the model's logits."""
    logits = without_nan(logits)
    highest = logits.max()
    # where a logit is infinite, those that are share the whole probability
    relative = logits - highest if np.isfinite(highest) else np.where(logits == highest, 0.0, -np.inf)
    log_sum = np.log(np.exp(relative, dtype=np.float64).sum())
    logprob = lambda token: max(float(relative[token] - log_sum), MIN_LOGPROB)  # noqa: E731
    best = first_in_order(logits, num_best).tolist() if num_best else []
    return TokenLogprobs(token_id, logprob(token_id), tuple((token, logprob(token)) for token in best))
