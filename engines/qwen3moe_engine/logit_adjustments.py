"""What requests change about the model's logits before the sampler sees them.

Owns: the formulas, and their order. Nothing is kept between steps: all follows from a request's tokens, so preemption
and batch neighbours change nothing.

  repetition   l < 0 ? l * r : l / r      for tokens of the prompt or the output: Keskar et al., 2019, section 4.1, as
                                          transformers' RepetitionPenaltyLogitsProcessor has it
  frequency,   l - c * f - (c > 0) * p    c: how often the token is in the output; OpenAI's API reference, "Frequency
  presence                                and presence penalties". The prompt does not count, as in vLLM
  bias         l + b                      OpenAI's logit_bias
  minimum      -inf                       for tokens that would end the request before min_new_tokens

The product comes first, on the model's own logits, since it is no sum and not indifferent to order; the mask comes
last, so that no bias lifts it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_params import SamplingParams

F32 = np.float32


def adjust_logits(logits: NDArray[np.float32], request: Request, eos_token_ids: tuple[int, ...]) -> NDArray[np.float32]:
    """A row [vocab_size] as the request wants it; the row itself if nothing changes."""
    params = request.params
    if not params.adjusts_logits:
        return logits
    logits = logits.copy()
    if params.repetition_penalty != 1:
        _penalize_repetition(logits, request.tokens(0, request.num_known), F32(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        _penalize_counts(logits, request.output_ids, params)
    if params.logit_bias:
        logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), F32)
    if len(request.output_ids) < params.min_new_tokens:
        logits[list(params.ending_token_ids(eos_token_ids))] = -np.inf
    return logits


def _penalize_repetition(logits: NDArray[np.float32], token_ids: list[int], penalty: np.float32) -> None:
    seen = logits[token_ids]
    # a token that is there twice is written twice with the same value
    logits[token_ids] = np.where(seen < 0, seen * penalty, seen / penalty)


def _penalize_counts(logits: NDArray[np.float32], output_ids: list[int], params: SamplingParams) -> None:
    token_ids, counts = np.unique(np.array(output_ids, np.int64), return_counts=True)
    logits[token_ids] -= counts.astype(F32) * F32(params.frequency_penalty) + F32(params.presence_penalty)
