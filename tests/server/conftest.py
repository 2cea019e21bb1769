"""The trained model, exported once, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner
from server_process import ServerProcess, run_server

from qwen3moe_engine import Engine, EngineOptions
from qwen3moe_export.cli import main


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return Path(__file__).resolve().parents[1] / "data" / "qwen3moe-tiny"


@pytest.fixture(scope="session")
def export(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def engine(export, checkpoint) -> Engine:
    """What the server's answers are compared with."""
    return Engine.from_export(export, checkpoint, EngineOptions(num_threads=1, kv_tokens=1024))


@pytest.fixture(scope="session")
def server(export, checkpoint) -> Iterator[ServerProcess]:
    with run_server(export, checkpoint) as running:
        yield running
        running.until_idle()


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
