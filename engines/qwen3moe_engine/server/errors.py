"""Errors as OpenAI's API has them: a status and {"error": {"message", "type", "param", "code"}}.

Owns: which exception becomes which answer. A client's mistakes are told in full, ours by name only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from qwen3moe_engine.async_engine import EngineDeadError, EngineStoppedError
from qwen3moe_engine.scheduler import QueueFullError
from qwen3moe_engine.server.disconnect import ClientLeftError
from qwen3moe_plugins.errors import InputError

INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
RETRY_SECONDS = 1  # a place in the queue is free as soon as any request ends
RESTART_SECONDS = 5


class ErrorDetail(BaseModel):
    """param: the field at fault, code: a word for programs; either may be unknown."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ApiError(Exception):
    """retry_after: seconds, where another try may succeed."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        # half a surrogate pair, which JSON may spell and UTF-8 may not, would make the answer itself fail
        clean = message.encode("utf-8", "replace").decode()
        self.detail = ErrorDetail(message=clean, type=kind, param=param, code=code)

    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(math.ceil(self.retry_after))} if self.retry_after is not None else {}
        return JSONResponse(self.body(), self.status, headers)


def api_error_of(error: Exception) -> ApiError:
    """What a client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, str(error), param=_param_of(str(error)))
    if isinstance(error, QueueFullError):
        return too_many(str(error))
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), SERVER, code="shutting_down", retry_after=RESTART_SECONDS)
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error), SERVER, code="engine_dead", retry_after=RESTART_SECONDS)
    if isinstance(error, ClientLeftError):
        return ApiError(499, "the client has left")  # nobody reads it
    return ApiError(500, "the server failed; its log says why", SERVER, code="internal_error")


def too_many(message: str) -> ApiError:
    return ApiError(429, message, RATE, code="rate_limit_exceeded", retry_after=RETRY_SECONDS)


def _param_of(message: str) -> str | None:
    """InputError's messages begin with what they are about."""
    what = message.partition(":")[0]
    return {"chat": "messages"}.get(what, what) if what.isidentifier() else None


def validation_error(errors: Sequence[Any]) -> ApiError:
    """What pydantic found wrong with the first field at fault; of a union it has a finding for each type."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"body: got invalid JSON ({first['ctx']['error']}), expected an object")
    field = first["loc"][1:2]
    if not field:
        return ApiError(400, "body: got no JSON object, expected one, as application/json")
    param = str(field[0])
    if first["type"] == "extra_forbidden":
        place = ".".join(map(str, first["loc"][1:]))
        return ApiError(400, f"{place:.100}: unknown field; leave it out", param=param, code="unknown_field")
    if first["type"] == "missing":
        return ApiError(400, f"{_place(first)}: got nothing, expected a value", param=param)
    findings = [error for error in errors if error["loc"][1:2] == field]
    places = {_place(error) for error in findings}
    place = places.pop() if len(places) == 1 else param
    said = dict.fromkeys(error["msg"].replace("Input should be ", "") for error in findings)
    message = f"{place}: got {first['input']!r:.100}, expected {' or '.join(list(said)[:4])}"
    return ApiError(400, message, param=param)


def _place(error: Any) -> str:
    """Fields and indices; a union adds the names of its types, such as `str` and `list[str]`."""
    return ".".join(str(part) for part in error["loc"][1:] if isinstance(part, int) or _is_field(part))


def _is_field(part: str) -> bool:
    return part.isidentifier() and part != "str"


def add_handlers(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return api_error_of(error).response()

    async def answer_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = INVALID if error.status_code < 500 else SERVER
        response = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", kind).response()
        response.headers.update(error.headers or {})
        return response

    async def answer_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    for kind in (ApiError, InputError, QueueFullError, EngineStoppedError, EngineDeadError, ClientLeftError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_validation)
