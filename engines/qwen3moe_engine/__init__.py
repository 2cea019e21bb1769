"""Torch-free runtime: checkpoints, manifests, paged KV cache, scheduler, executors and the generation loop.

Owns: the names that users import, each from its module when it is first asked for, so that a program pays for what it
uses. No executor's library and no web framework is imported here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3moe_engine.async_engine import AsyncEngine, EngineDeadError, EngineStoppedError
    from qwen3moe_engine.chat_template import Chat
    from qwen3moe_engine.engine import Engine
    from qwen3moe_engine.engine_options import EngineOptions
    from qwen3moe_engine.output_stream import OutputStream, RequestOutput
    from qwen3moe_engine.request import Completion, Request
    from qwen3moe_engine.sampling_params import SamplingParams
    from qwen3moe_engine.scheduler import QueueFullError
    from qwen3moe_engine.stats import EngineStats
    from qwen3moe_engine.timing import Timing

__all__ = [
    "AsyncEngine",
    "Chat",
    "Completion",
    "Engine",
    "EngineDeadError",
    "EngineOptions",
    "EngineStats",
    "EngineStoppedError",
    "OutputStream",
    "QueueFullError",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "Timing",
]

_MODULES = {
    "AsyncEngine": "async_engine",
    "Chat": "chat_template",
    "Completion": "request",
    "Engine": "engine",
    "EngineDeadError": "async_engine",
    "EngineOptions": "engine_options",
    "EngineStats": "stats",
    "EngineStoppedError": "async_engine",
    "OutputStream": "output_stream",
    "QueueFullError": "scheduler",
    "Request": "request",
    "RequestOutput": "output_stream",
    "SamplingParams": "sampling_params",
    "Timing": "timing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
