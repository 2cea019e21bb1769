"""Clients that leave: what their requests hold is free at once, and others never notice."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from server_process import MODEL

LONG = {"model": MODEL, "prompt": "She was", "max_tokens": 1500, "temperature": 0, "ignore_eos": True}
ABORTED = 'qwen3moe_requests_total{finish_reason="abort"}'


@pytest.mark.parametrize("body", [LONG, LONG | {"n": 3}, LONG | {"prompt": ["She", "He"], "logprobs": 1}])
def test_in_the_middle_of_a_stream(server, body):
    before = server.until_idle()
    num_choices = body.get("n", 1) * (len(body["prompt"]) if isinstance(body["prompt"], list) else 1)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=60) as response:
        events = response.iter_lines()
        for _ in range(12):
            next(events)
        assert server.metrics()["qwen3moe_requests_running"] == num_choices
        assert server.metrics()["qwen3moe_kv_blocks_used"] > 0
    after = server.until_idle()
    assert after[ABORTED] - before[ABORTED] == num_choices
    made = after["qwen3moe_generation_tokens_total"] - before["qwen3moe_generation_tokens_total"]
    assert made < 1000, "it went on until the end"


def test_before_an_answer_that_is_no_stream(server):
    before = server.until_idle()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=0.3)
    assert server.until_idle()[ABORTED] - before[ABORTED] == 1


def test_while_the_body_is_on_its_way(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    server.until_idle()


def test_others_get_their_whole_answer(server):
    """Twelve leave, each after another number of tokens, beside twelve that stay."""
    short = LONG | {"max_tokens": 60}
    ask = lambda: server.post("/v1/completions", json=short).json()["choices"][0]["text"]  # noqa: E731
    expected, answers = ask(), []

    def stay() -> None:
        answers.append(ask())

    def leave(num_events: int) -> None:
        body = LONG | {"stream": True, "prompt": f"He {num_events}"}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            events = response.iter_lines()
            for _ in range(num_events):
                next(events)

    threads = [threading.Thread(target=stay) for _ in range(12)]
    threads += [threading.Thread(target=leave, args=(1 + 3 * index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 12
    server.until_idle()
