"""Replicas of the server behind Ray Serve, as a deployment file asks for them; see docs/ray.md.

Owns: what a replica is and how Ray is to treat it. Routing, restarts and scaling are Ray's. Needs the extra `ray`.
Annotations are evaluated here, since Ray makes the arguments of the class that `build` names.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from qwen3moe_engine.async_engine import AsyncEngine
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_engine.server.app import make_app
from qwen3moe_engine.server.settings import ServerSettings
from qwen3moe_plugins.errors import InputError

HEALTH_CHECK_SECONDS = 5.0


class Replicas(BaseModel):
    """The `args` of a deployment file. Paths are those of the machines where replicas run.

    engine: fields of EngineOptions. server: fields of ServerSettings, for each replica. num_cpus, num_gpus: what Ray
    sets aside for a replica.
    """

    model_config = ConfigDict(extra="forbid")

    export: Path
    weights: Path | None = None
    tokenizer: Path | None = None
    engine: EngineOptions = Field(default_factory=EngineOptions)
    server: ServerSettings
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)


@serve.ingress()
class Replica:
    """An engine of its own with the server's application around it."""

    def __init__(self, arguments: Replicas):
        opened = OpenedExport(arguments.export, arguments.weights, arguments.engine, arguments.tokenizer)
        if opened.tokenizer is None:
            expected, remedy = "a folder with tokenizer.json", "name it"
            raise InputError("tokenizer", got="none", expected=expected, remedy=remedy)
        self._engine = AsyncEngine(opened.load())
        self._app = make_app(self._engine, opened.tokenizer, arguments.server)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Ray replaces a replica where this raises."""
        if self._engine.is_dead:
            raise RuntimeError("engine: got a failed executor, expected one that runs; the replica has to be replaced")


def build(arguments: Replicas) -> Any:
    """The application, for `import_path: qwen3moe_engine.server.ray_deployment:build`."""
    arguments.engine.check(arguments.weights)
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]  # of a class, not of none yet
        Replica,
        name="qwen3moe",
        num_replicas=arguments.num_replicas,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        # Ray's default of 5 would leave the batches of an engine empty; what is too much the replica refuses itself
        max_ongoing_requests=arguments.server.max_concurrency,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        graceful_shutdown_timeout_s=arguments.server.grace_seconds,
    )
    return deployment.bind(arguments)
