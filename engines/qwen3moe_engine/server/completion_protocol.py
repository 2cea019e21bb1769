"""Bodies of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from qwen3moe_engine.server.protocol import FinishReason, NumLogprobs, SamplingFields, TokenId, Usage


class CompletionRequest(SamplingFields):
    """prompt: text or token ids, one or several."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: NumLogprobs | None = Field(None, description="So many of the best tokens, beside the chosen one.")
    echo: Literal[False] | None = Field(None, description="Prompts are not repeated.")
    suffix: None = Field(None, description="There is no text behind the answer.")
    best_of: Annotated[Literal[1], Field(description="All choices are given.")] | None = None

    def prompts(self) -> list[str | list[int]]:
        """At least one; an empty list is a prompt of no token."""
        given: Any = self.prompt
        is_one = isinstance(given, str) or not given or isinstance(given[0], int)
        return [given] if is_one else given


class CompletionLogprobs(BaseModel):
    """A token each. text_offset: characters of the answer before the token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(BaseModel):
    """An event of a stream. usage: where it was asked for, in the last, which has no choices."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
