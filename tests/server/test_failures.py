"""An executor that fails: every request is told, in a stream too, and the server says that it has to be replaced."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from qwen3moe_engine import AsyncEngine, Engine, EngineOptions
from qwen3moe_engine.server.app import make_app
from qwen3moe_engine.server.settings import ServerSettings
from qwen3moe_engine.tokenizer import Tokenizer

BODY = {"model": "m", "prompt": "She was", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture
def fresh_engine(export, checkpoint) -> Engine:
    return Engine.from_export(export, checkpoint, EngineOptions(num_threads=1, kv_tokens=1024))


def test_a_failing_executor(fresh_engine, checkpoint, monkeypatch):
    execute, num_steps = fresh_engine.executor.execute, 0

    def fail_at_last(batch):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 40:
            raise RuntimeError("lost the device")
        return execute(batch)

    monkeypatch.setattr(fresh_engine.executor, "execute", fail_at_last)

    async def run() -> None:
        app = make_app(AsyncEngine(fresh_engine), Tokenizer(checkpoint), ServerSettings("m"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            ask = lambda **changes: client.post("/v1/completions", json=BODY | changes)  # noqa: E731
            answers = await asyncio.gather(ask(), ask(n=2), ask(stream=True), ask(stream=True, n=2))
            for answer in answers[:2]:
                check_dead(answer.status_code, answer.json())
            for answer in answers[2:]:
                events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
                assert answer.status_code == 200 and len(events) > 20 and "choices" in json.loads(events[-2])
                check_dead(503, json.loads(events[-1]))
            check_dead((late := await ask()).status_code, late.json())
            health, ready = await client.get("/health"), await client.get("/ready")
            assert (health.status_code, ready.status_code) == (503, 503)
            metrics = (await client.get("/metrics")).text
        assert 'qwen3moe_requests_total{finish_reason="error"} 6.0' in metrics and "qwen3moe_ready 0.0" in metrics

    asyncio.run(run())


def check_dead(status: int, body: dict) -> None:
    assert (status, body["error"]["type"], body["error"]["code"]) == (503, "server_error", "engine_dead")
    assert "lost the device" in body["error"]["message"]


def test_a_mistake_of_ours_is_told_by_name_only(fresh_engine, checkpoint, monkeypatch, caplog):
    """Before an answer has begun it is 500, and behind that an event; the log has the rest."""
    monkeypatch.setattr("qwen3moe_engine.server.generation.Generation.usage", lambda self: 1 / 0)

    async def run() -> None:
        engine = AsyncEngine(fresh_engine)
        app = make_app(engine, Tokenizer(checkpoint), ServerSettings("m"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with engine, httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post("/v1/completions", json=BODY | {"max_tokens": 2})
            options = {"stream": True, "stream_options": {"include_usage": True}}
            streamed = await client.post("/v1/completions", json=BODY | {"max_tokens": 2} | options)
            told = json.loads(streamed.text.splitlines()[-2].removeprefix("data: "))
            for error in (answer.json()["error"], told["error"]):
                assert (error["type"], error["code"]) == ("server_error", "internal_error")
                assert "division" not in error["message"]
            assert answer.status_code == 500
            assert app.state.service.slots.num_taken == 0

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text
