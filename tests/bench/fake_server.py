"""An OpenAI-compatible server that streams on a schedule, and notes when it did what: the truth of the bench's figures.

A request says by fields of its own how it is served. first, gap: seconds before the first part of the output and
between parts. tokens_per_part. fail: `status` 503 instead of a stream; behind half of the parts `cut` the connection,
`end` the stream without a finish reason, or send an `error`; `lose` the last part but count it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


@dataclass
class Served:
    """Seconds of time.perf_counter."""

    body: dict[str, Any]
    received: float
    sent: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class FakeServer:
    url: str = ""
    served: list[Served] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    api_key: str | None = None

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        app.add_api_route("/v1/chat/completions", self._complete, methods=["POST"])
        return app

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "fake"}]}

    async def _complete(self, request: Request) -> Response:
        served = Served(await request.json(), time.perf_counter())
        self.served.append(served)
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        if served.body.get("fail") == "status":
            return JSONResponse({"error": {"message": "too many requests"}}, 503)
        return StreamingResponse(self._stream(served), media_type="text/event-stream")

    async def _stream(self, served: Served) -> AsyncIterator[bytes]:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            async for event in parts_of(served):
                yield b"data: " + json.dumps(event).encode() + b"\n\n"
            if served.body.get("fail") != "end":
                yield b"data: [DONE]\n\n"
        finally:
            served.ended = time.perf_counter()
            self.num_running -= 1


async def parts_of(served: Served) -> AsyncIterator[dict[str, Any]]:
    body = served.body
    fail, per_part, is_chat = body.get("fail"), body.get("tokens_per_part", 1), "messages" in body
    num_parts = body["max_tokens"] // per_part
    if is_chat:
        yield {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for index in range(num_parts):
        await asyncio.sleep(body.get("gap", 0) if index else body.get("first", 0))
        if fail in ("cut", "end", "error") and index >= num_parts // 2:
            break
        if fail == "lose" and index == num_parts - 1:
            continue
        served.sent.append(time.perf_counter())
        yield {"choices": [part(per_part, is_chat, "logprobs" in body)]}
    if fail == "cut":
        raise ConnectionError("as asked")
    if fail == "error":
        yield {"error": {"message": "engine died"}}
    if fail in ("end", "error"):
        return
    ending = {"delta": {}} if is_chat else {"text": ""}
    yield {"choices": [{**ending, "finish_reason": "length"}]}
    num_prompt = len(body.get("prompt", "hello"))
    yield {"choices": [], "usage": {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}}


def part(num_tokens: int, is_chat: bool, with_logprobs: bool) -> dict[str, Any]:
    text = "x" * num_tokens
    if is_chat:
        logprobs = {"content": [{"token": "x", "logprob": 0.0}] * num_tokens}
        choice: dict[str, Any] = {"delta": {"content": text}}
    else:
        logprobs = {"tokens": ["x"] * num_tokens}
        choice = {"text": text}
    return {**choice, "finish_reason": None, "logprobs": logprobs if with_logprobs else None}


@contextmanager
def run_fake_server(api_key: str | None = None) -> Iterator[FakeServer]:
    fake = FakeServer(api_key=api_key)
    config = uvicorn.Config(fake.app(), port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
