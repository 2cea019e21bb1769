"""Who may use /v1: those with the key, if there is one.

Owns: the check, which comes before the body is read. Health, readiness and metrics are open to all.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3moe_engine.server.errors import ApiError

GUARDED = "/v1/"


class ApiKeyCheck:
    """Wants `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, api_key: str):
        self._app, self._expected = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED) or self._allows(scope):
            await self._app(scope, receive, send)
            return
        message = "Authorization: got no valid key, expected `Bearer` and the server's API key; send it"
        response = ApiError(401, message, code="invalid_api_key").response()
        response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # compared in constant time
        return scheme.lower() == "bearer" and secrets.compare_digest(key.encode("latin-1"), self._expected)
