"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request

from qwen3moe_engine.output_stream import RequestOutput
from qwen3moe_engine.request import Completion
from qwen3moe_engine.server.chat_protocol import AnswerMessage, ChatChoice, ChatChunk, ChatRequest, ChatResponse
from qwen3moe_engine.server.event_stream import EventStream
from qwen3moe_engine.server.generation import Generation
from qwen3moe_engine.server.limits import check_choices, check_length
from qwen3moe_engine.server.openapi import answers
from qwen3moe_engine.server.service import Service, ServiceOfApp, new_frame
from qwen3moe_engine.server.token_text import chat_logprobs

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=answers(ChatChunk))
async def create_chat_completion(
    body: ChatRequest, request: Request, service: ServiceOfApp
) -> EventStream | ChatResponse:
    """Answers the last of the messages."""
    generation = await _open(body, service)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    frame = new_frame("chatcmpl", kind, body.model)
    if body.stream:
        return EventStream(generation, _events(generation, frame, body, service))
    found = await generation.completions(request.receive)
    choices = [_choice(service, index, completion) for index, completion in enumerate(found)]
    return ChatResponse(**frame, choices=choices, usage=generation.usage())


async def _open(body: ChatRequest, service: Service) -> Generation:
    """All is checked before any of it is queued."""
    service.check_model(body.model)
    wanted, num_logprobs = body.most_tokens(), body.num_logprobs()
    check_choices(body.num_choices, service.settings.max_choices)
    ids = await service.engine.encode(body.chat())
    max_new = check_length(len(ids), wanted, service.settings.max_prompt_tokens, service.max_request_tokens)
    generation = Generation(service, [ids], body.num_choices)
    await generation.open([body.sampling_params(max_new, num_logprobs)], body.priority or 0)
    return generation


def _choice(service: Service, index: int, completion: Completion) -> ChatChoice:
    found = completion.logprobs
    reason: Any = completion.finish_reason
    return ChatChoice(
        index=index,
        message=AnswerMessage(content=completion.text or ""),
        logprobs=chat_logprobs(service.tokenizer, found) if found is not None else None,
        finish_reason=reason,
    )


async def _events(
    generation: Generation, frame: dict[str, Any], body: ChatRequest, service: Service
) -> AsyncGenerator[dict[str, Any], None]:
    """ChatChunks, as dictionaries: there is one for each token. The first of a choice says who speaks, at once."""
    usage = {"usage": None} if body.wants_usage else {}
    for index in range(generation.num_streams):
        opening = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": opening, "logprobs": None, "finish_reason": None}
        yield {**frame, "choices": [choice], **usage}
    async for index, output in generation.outputs():
        yield {**frame, "choices": [_chunk_choice(service, index, output)], **usage}
    if body.wants_usage:
        yield {**frame, "choices": [], "usage": generation.usage().model_dump()}


def _chunk_choice(service: Service, index: int, output: RequestOutput) -> dict[str, Any]:
    logprobs = chat_logprobs(service.tokenizer, output.logprobs).model_dump() if output.logprobs is not None else None
    return {
        "index": index,
        "delta": {"content": output.text},
        "logprobs": logprobs,
        "finish_reason": output.finish_reason,
    }
