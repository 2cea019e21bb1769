"""GET /v1/models: the one model there is."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from qwen3moe_engine.server.openapi import ERRORS
from qwen3moe_engine.server.service import Service, ServiceOfApp

router = APIRouter()


class Model(BaseModel):
    """max_model_len: tokens of a prompt and its answer together; vLLM's name for it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["qwen3moe-export"] = "qwen3moe-export"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def _model(service: Service) -> Model:
    return Model(id=service.settings.model_name, created=service.created, max_model_len=service.max_request_tokens)


@router.get("/v1/models", responses={401: ERRORS[401]})
async def list_models(service: ServiceOfApp) -> ModelList:
    """The model that is served."""
    return ModelList(data=[_model(service)])


@router.get("/v1/models/{model:path}", responses={401: ERRORS[401], 404: ERRORS[404]})
async def get_model(model: str, service: ServiceOfApp) -> Model:
    """The model of this name."""
    service.check_model(model)
    return _model(service)
