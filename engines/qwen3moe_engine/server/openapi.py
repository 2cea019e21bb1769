"""The server's description of itself, which tests hold it to.

Owns: what FastAPI does not know: errors in OpenAI's form instead of its own 422, event streams, the one model's name,
the API key.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from qwen3moe_engine.server.chat_protocol import ChatChunk
from qwen3moe_engine.server.completion_protocol import CompletionChunk
from qwen3moe_engine.server.errors import ErrorBody
from qwen3moe_engine.server.settings import ServerSettings

_ABOUT = {
    400: "The request is wrong; the message says what of it.",
    401: "No valid API key.",
    404: "There is no such model.",
    413: "The body is too large.",
    429: "As much is going on as may; try again after Retry-After seconds.",
    500: "The server failed.",
    503: "The server takes no requests: it shuts down, or its executor has failed.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": about} | ({"headers": _RETRY} if status == 429 else {})
    for status, about in _ABOUT.items()
}
_REF = "#/components/schemas/"
REQUEST_BODIES = ("CompletionRequest", "ChatRequest")


def answers(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Of a route that generates: errors, and a stream of `chunk` where it is asked for."""
    about = f"JSON, or with `stream` events `data: {chunk.__name__}` and at the end `data: [DONE]`."
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"$ref": _REF + chunk.__name__}}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"description": about, "content": {"text/event-stream": {"schema": event}}}, **ERRORS}


def describe(app: FastAPI, settings: ServerSettings) -> None:
    """Has the application describe this server."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _drop_validation_errors(schema)
            _add_chunks(schema["components"]["schemas"])
            for body in REQUEST_BODIES:
                schema["components"]["schemas"][body]["properties"]["model"]["enum"] = [settings.model_name]
            if settings.api_key is not None:
                _require_key(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_validation_errors(schema: dict[str, Any]) -> None:
    """FastAPI's 422, which errors.py answers with 400."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)


def _add_chunks(schemas: dict[str, Any]) -> None:
    """No route returns them as they are, so FastAPI does not know them."""
    for chunk in (CompletionChunk, ChatChunk):
        described = chunk.model_json_schema(ref_template=_REF + "{model}")
        schemas.update(described.pop("$defs"))
        schemas[chunk.__name__] = described


def _require_key(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"api_key": []}]
