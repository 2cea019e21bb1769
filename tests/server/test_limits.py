"""A server with narrow limits and a key: who gets in, and how much at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner
from server_process import MODEL, ServerProcess, run_server

from qwen3moe_export.cli import main

KEY = "a-key-ä"
MAX_BODY, MAX_PROMPT, MAX_OPEN = 2000, 40, 4
AUTHORIZED = {"Authorization": f"Bearer {KEY}".encode()}
BODY = {"model": MODEL, "prompt": "She was", "max_tokens": 300, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def strict(export, checkpoint, tmp_path_factory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    limits = ("--max-body-bytes", MAX_BODY, "--max-prompt-tokens", MAX_PROMPT, "--max-concurrency", MAX_OPEN)
    options = ("--api-key-file", file, "--max-seqs", 2, "--model-name", "org/other", *limits)
    with run_server(export, checkpoint, *map(str, options)) as running:
        yield running


def ask(server: ServerProcess, headers: dict = AUTHORIZED, **changes) -> httpx.Response:
    return server.post("/v1/completions", json=BODY | {"model": "org/other"} | changes, headers=headers)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY.encode()}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/nothing"])
def test_without_the_key(strict, path, headers):
    response = httpx.get(strict.url + path, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_the_key_is_asked_for_before_the_body_is_read(strict):
    assert ask(strict, headers={}, prompt="x" * 2 * MAX_BODY).status_code == 401


def test_with_the_key(strict):
    assert ask(strict, max_tokens=2).status_code == 200
    assert ask(strict, {"authorization": f"bearer {KEY}".encode()}, max_tokens=2).status_code == 200
    response = httpx.get(f"{strict.url}/v1/models/org/other", headers=AUTHORIZED)
    assert response.json()["id"] == "org/other"


def test_openais_client_is_told(strict):
    with strict.client() as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/openapi.json"])
def test_open_to_all(strict, path):
    assert httpx.get(strict.url + path).status_code == 200


def test_a_long_body(strict):
    response = ask(strict, prompt="x" * MAX_BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert f"more than {MAX_BODY} bytes" in response.json()["error"]["message"]


def test_a_long_body_that_does_not_say_how_long(strict):
    pieces = (b"x" * 100 for _ in range(MAX_BODY))
    response = strict.post("/v1/completions", content=pieces, headers=AUTHORIZED)
    assert response.status_code == 413 and "content-length" not in response.request.headers


def test_a_long_prompt(strict):
    assert ask(strict, prompt=[5] * MAX_PROMPT, max_tokens=1).status_code == 200
    error = ask(strict, prompt=[5] * (MAX_PROMPT + 1), max_tokens=1).json()["error"]
    assert error["message"] == "prompt: got 41 tokens, expected at most 40; shorten it"
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_too_many_at_once(strict):
    """Two run and two wait; who comes behind them is told when to come again, and those get their answers."""
    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(ask, strict, prompt=f"He {index}") for index in range(MAX_OPEN)]
        strict.until(lambda found: found["qwen3moe_requests_running"] + found["qwen3moe_requests_waiting"] == MAX_OPEN)
        refused = ask(strict)
        for task in accepted:
            assert task.result().status_code == 200
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"] == "concurrency: got 1 sequences beside 4 open ones, expected at most 4 together; try again"
    assert ask(strict, max_tokens=1).status_code == 200
    assert ask(strict, n=5, max_tokens=1).status_code == 429
    assert ask(strict, n=4, max_tokens=1).status_code == 200


def test_refused_requests_leave_nothing(strict):
    for wrong in ({"prompt": ["She", ""]}, {"n": 5}, {"stop_token_ids": [9999]}, {"max_tokens": 5000}):
        assert ask(strict, **wrong).status_code in (400, 429)
    strict.until_idle()
    assert ask(strict, n=4, max_tokens=1).status_code == 200


def refusal(*args: str, **environment: str) -> str:
    result = CliRunner().invoke(main, ["serve", *args], env=environment)
    assert result.exit_code == 2 and not result.stdout
    return result.stderr


def test_what_the_command_refuses(export, checkpoint, tmp_path, strict):
    good = (str(export), "--weights", str(checkpoint))
    (tmp_path / "empty").write_text("\n")
    assert "empty file, expected a key" in refusal(*good, "--api-key-file", str(tmp_path / "empty"))
    assert "No such file" in refusal(*good, "--api-key-file", str(tmp_path / "none"))
    assert "Missing option '--weights'" in refusal(str(export))
    port = strict.url.rpartition(":")[2]
    assert f"127.0.0.1:{port}: got Address already in use" in refusal(*good, "--port", port)
    assert "no-such-host.invalid:8000: got" in refusal(*good, "--host", "no-such-host.invalid")
    (weights := tmp_path / "weights").mkdir()
    for file in Path(checkpoint).glob("model*"):
        (weights / file.name).symlink_to(file)
    assert "--tokenizer: got none" in refusal(str(export), "--weights", str(weights))
    assert "max_step_tokens: got 8" in refusal(*good, "--max-step-tokens", "8")
