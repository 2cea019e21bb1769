"""Tokens and their log-probabilities as the API shows them.

Owns: how a token is written alone: as its text where that is whole characters, else as `bytes:\\xe2\\x82`, which is
OpenAI's way, so that tokens that differ are written differently.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3moe_engine.logprobs import TokenLogprobs
from qwen3moe_engine.server.chat_protocol import ChatLogprobs, TokenLogprob, TopLogprob
from qwen3moe_engine.server.completion_protocol import CompletionLogprobs
from qwen3moe_engine.tokenizer import Tokenizer


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    if (special := tokenizer.special_text(token_id)) is not None:
        return special
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprobs], start: int) -> CompletionLogprobs:
    """start: characters of the tokens before."""
    tokens = [token_text(tokenizer, item.token_id) for item in found]
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[item.logprob for item in found],
        top_logprobs=[{token_text(tokenizer, token): logprob for token, logprob in item.best} for item in found],
        text_offset=[start + sum(map(len, tokens[:index])) for index in range(len(tokens))],
    )


def chat_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprobs]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_top(tokenizer, item.token_id, item.logprob).model_dump(),
                top_logprobs=[_top(tokenizer, token, logprob) for token, logprob in item.best],
            )
            for item in found
        ]
    )


def _top(tokenizer: Tokenizer, token_id: int, logprob: float) -> TopLogprob:
    text = token_text(tokenizer, token_id)
    special = tokenizer.special_text(token_id) is not None
    data = text.encode() if special else tokenizer.token_bytes(token_id)
    return TopLogprob(token=text, logprob=logprob, bytes=list(data))
