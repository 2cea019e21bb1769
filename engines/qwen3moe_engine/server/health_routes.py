"""Whether the server lives, whether it takes requests, and how it fares. Open to all."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from qwen3moe_engine.server.errors import RESTART_SECONDS, SERVER, ApiError
from qwen3moe_engine.server.openapi import ERRORS
from qwen3moe_engine.server.service import ServiceOfApp

router = APIRouter()


class Status(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/health", responses={503: ERRORS[503]})
async def health(service: ServiceOfApp) -> Status:
    """Whether the process should live on: not once its executor has failed."""
    if service.engine.is_dead:
        raise ApiError(503, "the executor has failed; start the server again", SERVER, code="engine_dead")
    return Status()


@router.get("/ready", responses={503: ERRORS[503]})
async def ready(service: ServiceOfApp) -> Status:
    """Whether requests should be sent here: not while it shuts down."""
    if not service.engine.is_ready:
        message = "the server takes no more requests"
        raise ApiError(503, message, SERVER, code="not_ready", retry_after=RESTART_SECONDS)
    return Status()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOfApp) -> Response:
    """For Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
