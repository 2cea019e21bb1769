"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request

from qwen3moe_engine.request import Completion
from qwen3moe_engine.server.completion_protocol import (
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from qwen3moe_engine.server.event_stream import EventStream
from qwen3moe_engine.server.generation import Generation
from qwen3moe_engine.server.limits import check_choices, check_length
from qwen3moe_engine.server.openapi import answers
from qwen3moe_engine.server.service import Service, ServiceOfApp, new_frame
from qwen3moe_engine.server.token_text import completion_logprobs

DEFAULT_MAX_TOKENS = 16  # OpenAI's
router = APIRouter()


@router.post("/v1/completions", response_model=CompletionResponse, responses=answers(CompletionChunk))
async def create_completion(
    body: CompletionRequest, request: Request, service: ServiceOfApp
) -> EventStream | CompletionResponse:
    """Continues prompts."""
    generation = await _open(body, service)
    frame = new_frame("cmpl", "text_completion", body.model)
    if body.stream:
        return EventStream(generation, _events(generation, frame, body, service))
    found = await generation.completions(request.receive)
    choices = [_choice(service, index, completion) for index, completion in enumerate(found)]
    return CompletionResponse(**frame, choices=choices, usage=generation.usage())


async def _open(body: CompletionRequest, service: Service) -> Generation:
    """All is checked before any of it is queued."""
    service.check_model(body.model)
    prompts = body.prompts()
    check_choices(len(prompts) * body.num_choices, service.settings.max_choices)
    encoded = [await service.engine.encode(prompt) for prompt in prompts]
    wanted = body.max_tokens or DEFAULT_MAX_TOKENS
    for ids in encoded:
        check_length(len(ids), wanted, service.settings.max_prompt_tokens, service.max_request_tokens)
    params = body.sampling_params(wanted, body.logprobs)
    generation = Generation(service, encoded, body.num_choices)
    await generation.open([params] * len(encoded), body.priority or 0)
    return generation


def _choice(service: Service, index: int, completion: Completion) -> CompletionChoice:
    found = completion.logprobs
    logprobs = completion_logprobs(service.tokenizer, found, 0) if found is not None else None
    reason: Any = completion.finish_reason
    return CompletionChoice(index=index, text=completion.text or "", logprobs=logprobs, finish_reason=reason)


async def _events(
    generation: Generation, frame: dict[str, Any], body: CompletionRequest, service: Service
) -> AsyncGenerator[dict[str, Any], None]:
    """CompletionChunks, as dictionaries: there is one for each token."""
    usage = {"usage": None} if body.wants_usage else {}
    offsets = [0] * generation.num_streams
    async for index, output in generation.outputs():
        logprobs: CompletionLogprobs | None = None
        if output.logprobs is not None:
            logprobs = completion_logprobs(service.tokenizer, output.logprobs, offsets[index])
            offsets[index] += sum(map(len, logprobs.tokens))
        choice = {
            "index": index,
            "text": output.text,
            "logprobs": logprobs.model_dump() if logprobs else None,
            "finish_reason": output.finish_reason,
        }
        yield {**frame, "choices": [choice], **usage}
    if body.wants_usage:
        yield {**frame, "choices": [], "usage": generation.usage().model_dump()}
