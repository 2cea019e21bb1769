"""Server-sent events: an answer that comes token by token.

Owns: the form on the wire, `data: JSON` and at the end `data: [DONE]`; an error once the answer has begun is an event
`data: {"error": ...}`, which ends it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3moe_engine.server.disconnect import ClientLeftError, unless_disconnected
from qwen3moe_engine.server.errors import api_error_of
from qwen3moe_engine.server.generation import Generation

logger = logging.getLogger(__name__)
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends `events`, JSON values made from the outputs of `generation`, which it closes however it ends."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncGenerator[dict[str, Any], None]):
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._generation, self._events = generation, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientLeftError):
                await unless_disconnected(receive, self._send_all(send))
        finally:
            self._generation.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = DONE
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": _encode(event), "more_body": True})
        except Exception as error:
            failure = api_error_of(error)
            if failure.status == 500:
                logger.exception("a stream failed")
            last = _encode(failure.body())
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _encode(event: dict[str, Any]) -> bytes:
    """In ASCII: to some clients characters such as U+2028 end a line, and with it the event."""
    return f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode("ascii")
