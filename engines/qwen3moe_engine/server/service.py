"""What every route needs: the engine and what stands around it."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from fastapi import Depends, Request

from qwen3moe_engine.async_engine import AsyncEngine
from qwen3moe_engine.server.errors import INVALID, ApiError
from qwen3moe_engine.server.limits import Slots
from qwen3moe_engine.server.metrics import Metrics
from qwen3moe_engine.server.settings import ServerSettings
from qwen3moe_engine.tokenizer import Tokenizer


class Service:
    """One model. tokenizer: the engine's own."""

    def __init__(self, engine: AsyncEngine, tokenizer: Tokenizer, settings: ServerSettings):
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.metrics = Metrics(engine)
        self.slots = Slots(settings.max_concurrency)
        self.created = int(time.time())

    @property
    def max_request_tokens(self) -> int:
        """Of a prompt and its answer together."""
        return self.engine.engine.max_request_tokens

    def check_model(self, name: str) -> None:
        """Raises ApiError 404."""
        if name != self.settings.model_name:
            message = f"model: got {name!r:.100}, expected {self.settings.model_name!r}; GET /v1/models lists it"
            raise ApiError(404, message, INVALID, param="model", code="model_not_found")


def new_frame(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What an answer of `kind`, and each chunk of it, begins with; its id is new."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOfApp = Annotated[Service, Depends(_service_of)]
