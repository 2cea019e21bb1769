"""The server's life: from a bound socket to the last answer.

Owns: what a signal does. The first SIGTERM or SIGINT makes it not ready: new requests get 503, accepted ones have the
grace period to finish in, the rest end with an error; then it exits. A second ends the grace period.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from qwen3moe_engine.async_engine import AsyncEngine
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.server.app import make_app
from qwen3moe_engine.server.settings import ServerSettings
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_plugins.errors import InputError

CLOSE_SECONDS = 5  # for clients to read what has been answered


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: an address in use is known before a model is loaded. Raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        expected, remedy = "an address that is free here", "choose another --host or --port"
        raise InputError(f"{host}:{port}", got=error.strerror, expected=expected, remedy=remedy) from None
    return bound


def serve(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: ServerSettings,
    bound: socket.socket,
    on_listening: Callable[[], None] = lambda: None,
) -> int:
    """Until a signal. Returns how many accepted sequences were failed."""

    async def run() -> int:
        streaming = AsyncEngine(engine)
        return await _Server(streaming, make_app(streaming, tokenizer, settings), settings, on_listening).answer(bound)

    return asyncio.run(run())


class _Server(uvicorn.Server):
    def __init__(self, engine: AsyncEngine, app: FastAPI, settings: ServerSettings, on_listening: Callable[[], None]):
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", lifespan="off", server_header=False, timeout_graceful_shutdown=CLOSE_SECONDS
            )
        )
        self._engine, self._grace_seconds, self._on_listening = engine, settings.grace_seconds, on_listening
        self._draining: asyncio.Task[int] | None = None

    async def answer(self, bound: socket.socket) -> int:
        self._loop = asyncio.get_running_loop()
        await self.serve(sockets=[bound])
        return await self._draining if self._draining is not None else await self._engine.drain(0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of signals; its own would stop listening at once, and end the process by the signal."""
        self._loop.call_soon_threadsafe(self._begin_end)

    def _begin_end(self) -> None:
        if self._draining is None:
            self._draining = self._loop.create_task(self._drain())
        else:
            self._loop.create_task(self._engine.drain(0))

    async def _drain(self) -> int:
        num_failed = await self._engine.drain(self._grace_seconds)
        self.should_exit = True
        return num_failed
