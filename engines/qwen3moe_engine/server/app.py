"""The application: routes, limits and errors around one engine."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from qwen3moe_engine.async_engine import AsyncEngine
from qwen3moe_engine.server import chat_routes, completion_routes, health_routes, model_routes
from qwen3moe_engine.server.api_key import ApiKeyCheck
from qwen3moe_engine.server.errors import add_handlers
from qwen3moe_engine.server.limits import BodyLimit
from qwen3moe_engine.server.openapi import describe
from qwen3moe_engine.server.service import Service
from qwen3moe_engine.server.settings import ServerSettings
from qwen3moe_engine.tokenizer import Tokenizer


def make_app(engine: AsyncEngine, tokenizer: Tokenizer, settings: ServerSettings) -> FastAPI:
    """An ASGI application. tokenizer: the engine's. Whoever runs it drains the engine at the end."""
    # the pages that show the description come from elsewhere on the net, so there are none
    app = FastAPI(title="qwen3moe-export", version=version("qwen3moe-export"), docs_url=None, redoc_url=None)
    app.state.service = Service(engine, tokenizer, settings)
    for routes in (completion_routes, chat_routes, model_routes, health_routes):
        app.include_router(routes.router)
    add_handlers(app)
    describe(app, settings)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKeyCheck, api_key=settings.api_key)  # the last added sees a request first
    return app
