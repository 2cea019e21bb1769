"""How much the server takes on: bytes of a body, tokens of a prompt, sequences at once.

Owns: the limits' refusals. What a request may hold in all is the engine's own limit.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3moe_engine.server.errors import ApiError, too_many


class Slots:
    """For sequences that are open, running or waiting."""

    def __init__(self, limit: int):
        self.limit, self.num_taken = limit, 0

    def take(self, count: int) -> None:
        """All or none. Raises ApiError 429."""
        if self.num_taken + count > self.limit:
            raise too_many(
                f"concurrency: got {count} sequences beside {self.num_taken} open ones, "
                f"expected at most {self.limit} together; try again"
            )
        self.num_taken += count

    def release(self, count: int) -> None:
        self.num_taken -= count


def check_choices(count: int, most: int) -> None:
    """Raises ApiError 400 if one request asks for more sequences than it may."""
    if count > most:
        message = f"n: got {count} choices of all prompts, expected at most {most}; send several requests"
        raise ApiError(400, message, param="n")


def check_length(num_prompt: int, num_new: int | None, max_prompt: int | None, max_tokens: int) -> int:
    """The tokens to make: `num_new`, or as many as fit. Raises ApiError 400.

    num_prompt: of the prompt. max_prompt: the server's limit on it. max_tokens: the engine's, with the new ones.
    """
    code = "context_length_exceeded"
    if max_prompt is not None and num_prompt > max_prompt:
        message = f"prompt: got {num_prompt} tokens, expected at most {max_prompt}; shorten it"
        raise ApiError(400, message, param="prompt", code=code)
    if num_prompt + (num_new or 1) > max_tokens:
        message = (
            f"prompt: got {num_prompt} prompt + {num_new or 1} new tokens, expected at most {max_tokens} together; "
            "shorten the prompt or lower max_tokens"
        )
        raise ApiError(400, message, param="prompt", code=code)
    return num_new if num_new is not None else max_tokens - num_prompt


class BodyLimit:
    """Reads a request's body before the application sees it, and refuses one above `max_bytes` with 413."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        body = bytearray()
        if not declared.isdecimal() or int(declared) <= self._max_bytes:
            more = True
            while more and len(body) <= self._max_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
            if not more and len(body) <= self._max_bytes:
                await self._app(scope, _replay(bytes(body), receive), send)
                return
        await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"body: got more than {self._max_bytes} bytes, expected at most so many; send less at a time"
        response = ApiError(413, message, code="request_too_large").response()
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the whole body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
