"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from qwen3moe_engine.chat_template import Chat
from qwen3moe_engine.sampling_params import INT32_MAX
from qwen3moe_engine.server.errors import ApiError
from qwen3moe_engine.server.protocol import FinishReason, NumLogprobs, SamplingFields, Strict, Usage


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """content: text, or parts of text, which become lines. reasoning_content: what an assistant thought before."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | self.model_dump(
            include={"name", "reasoning_content"}, exclude_none=True
        )


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(SamplingFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = Field(
        None, description="The later name of max_tokens; default: as many as fit."
    )
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = Field(None, description="Goes with logprobs.")
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Not in OpenAI's API: variables of the template, such as enable_thinking."
    )

    def chat(self) -> Chat:
        return Chat([message.for_template() for message in self.messages], options=self.chat_template_kwargs or {})

    def most_tokens(self) -> int | None:
        if None not in (self.max_tokens, self.max_completion_tokens):
            message = "max_tokens: got it and max_completion_tokens, expected one of them; leave one out"
            raise ApiError(400, message, param="max_tokens")
        return self.max_tokens or self.max_completion_tokens

    def num_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs: got it without logprobs, expected it with logprobs: true; leave it out"
            raise ApiError(400, message, param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(BaseModel):
    """An event of a stream. usage: where it was asked for, in the last, which has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
