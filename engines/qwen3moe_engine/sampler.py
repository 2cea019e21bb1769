"""From logits to tokens, for the whole batch.

Owns: nothing between steps. Each row is drawn by its own request's parameters, seed and index of token, so that it
does not matter which rows are beside it, nor how often the request was preempted. Rows are drawn where they lie; those
whose logits change first, or whose log-probabilities are asked for, come to the host.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3moe_engine.logit_adjustments import adjust_logits
from qwen3moe_engine.logits import Draw, HostLogits, Logits
from qwen3moe_engine.logprobs import TokenLogprobs, token_logprobs
from qwen3moe_engine.request import Request

Sampled = tuple[int, TokenLogprobs | None]


def draws_of(requests: Sequence[Request]) -> list[Draw]:
    """Of the next token of each, behind those that are to come."""
    return [Draw(request.params, len(request.output_ids) + request.num_pending) for request in requests]


def sample_batch(
    logits: Logits, requests: Sequence[Request], draws: Sequence[Draw], eos_token_ids: tuple[int, ...]
) -> list[Sampled]:
    """The next token of each request, and its log-probabilities where asked for; the request's logits and draw are
    those of the same index."""
    tokens = logits.draw(draws)
    logprobs: list[TokenLogprobs | None] = [None] * len(requests)
    on_host = [row for row, request in enumerate(requests) if needs_logits(request)]
    for row, values in zip(on_host, logits.rows(on_host) if on_host else (), strict=True):
        request = requests[row]
        if request.params.adjusts_logits:
            adjusted = adjust_logits(values, request, eos_token_ids)
            tokens[row] = HostLogits(adjusted[None]).draw([draws[row]])[0]
        if request.params.logprobs is not None:  # the model's own, before any change
            logprobs[row] = token_logprobs(values, tokens[row], request.params.logprobs)
    return list(zip(tokens, logprobs, strict=True))


def needs_logits(request: Request) -> bool:
    """Whether the request's row has to come to the host."""
    return request.params.adjusts_logits or request.params.logprobs is not None
