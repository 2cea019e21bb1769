"""Wrong requests get the right status, and a message in OpenAI's form that names what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from server_process import MODEL

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RIGHT = {
    COMPLETIONS: {"model": MODEL, "prompt": "She was", "max_tokens": 2},
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2},
}


@dataclass(frozen=True)
class Case:
    """changes: to a right request; a field that is None is left out. says: parts of the message, in order."""

    path: str
    changes: dict[str, Any]
    param: str | None
    says: tuple[str, ...]
    status: int = 400
    code: str | None = None


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Who?"} | changes]}


CASES = {
    # the model and the prompt
    "no model": Case(COMPLETIONS, {"model": None}, "model", ("model", "got nothing")),
    "another model": Case(
        COMPLETIONS, {"model": "gpt-4"}, "model", ("'gpt-4'", MODEL, "/v1/models"), 404, "model_not_found"
    ),
    "another model in a chat": Case(CHAT, {"model": "gpt-4"}, "model", ("'gpt-4'", MODEL), 404, "model_not_found"),
    "no prompt": Case(COMPLETIONS, {"prompt": None}, "prompt", ("prompt", "got nothing")),
    "a prompt that is a number": Case(COMPLETIONS, {"prompt": 5}, "prompt", ("prompt", "got 5", "string", "list")),
    "a prompt of both kinds": Case(COMPLETIONS, {"prompt": [1, "a"]}, "prompt", ("prompt", "string")),
    "an empty prompt": Case(COMPLETIONS, {"prompt": ""}, "prompt", ("prompt", "no token", "at least one")),
    "no prompts": Case(COMPLETIONS, {"prompt": []}, "prompt", ("prompt", "no token")),
    "an empty prompt among others": Case(COMPLETIONS, {"prompt": ["She", ""]}, "prompt", ("prompt", "no token")),
    "half a character": Case(COMPLETIONS, {"prompt": "\ud800"}, "prompt", ("surrogate", "whole characters")),
    "half a character in a chat": Case(CHAT, message(content="\udfff"), "prompt", ("surrogate", "whole characters")),
    "a token that there is not": Case(COMPLETIONS, {"prompt": [5, 2048]}, "prompt", ("[2048]", "0 to 2047")),
    "a negative token": Case(COMPLETIONS, {"prompt": [5, -1]}, "prompt", ("prompt", "0")),
    "a prompt too long": Case(
        COMPLETIONS,
        {"prompt": [5] * 2047},
        "prompt",
        ("2047 prompt + 2 new", "at most 2048", "max_tokens"),
        code="context_length_exceeded",
    ),
    "too many new tokens": Case(
        CHAT, {"max_tokens": 2048}, "prompt", ("2048 new", "at most 2048"), code="context_length_exceeded"
    ),
    # messages
    "no messages": Case(CHAT, {"messages": None}, "messages", ("messages", "got nothing")),
    "an empty list of messages": Case(CHAT, {"messages": []}, "messages", ("messages", "at least 1")),
    "an unknown role": Case(CHAT, message(role="robot"), "messages", ("messages.0.role", "'robot'", "'user'")),
    "content that is none": Case(CHAT, message(content=5), "messages", ("messages", "5", "string")),
    "an image": Case(
        CHAT,
        message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "messages",
        ("messages", "'text'"),
    ),
    "tools": Case(CHAT, {"tools": []}, "tools", ("tools", "unknown field"), code="unknown_field"),
    "tool calls": Case(
        CHAT, message(tool_calls=[]), "messages", ("messages.0.tool_calls", "unknown field"), code="unknown_field"
    ),
    "what the template keeps": Case(
        CHAT, {"chat_template_kwargs": {"messages": []}}, "messages", ("'messages'", "template's own")
    ),
    "a format of answers": Case(
        CHAT, {"response_format": {"type": "json_object"}}, "response_format", ("'json_object'", "'text'")
    ),
    "both names of a limit": Case(
        CHAT, {"max_completion_tokens": 2}, "max_tokens", ("max_tokens", "max_completion_tokens", "leave one out")
    ),
    "best tokens without log-probabilities": Case(CHAT, {"top_logprobs": 2}, "top_logprobs", ("logprobs: true",)),
    # sampling
    "an unknown field": Case(
        COMPLETIONS, {"max_token": 2}, "max_token", ("max_token", "unknown field"), code="unknown_field"
    ),
    "echo": Case(COMPLETIONS, {"echo": True}, "echo", ("echo", "True", "False")),
    "a suffix": Case(COMPLETIONS, {"suffix": "."}, "suffix", ("suffix", "'.'", "None")),
    "no new token": Case(COMPLETIONS, {"max_tokens": 0}, "max_tokens", ("max_tokens", "got 0", "1")),
    "half a token": Case(COMPLETIONS, {"max_tokens": 1.5}, "max_tokens", ("max_tokens", "1.5", "integer")),
    "a number in quotes": Case(COMPLETIONS, {"temperature": "1"}, "temperature", ("temperature", "'1'", "number")),
    "a temperature below 0": Case(COMPLETIONS, {"temperature": -1}, "temperature", ("temperature", "-1", "0")),
    "top_p above 1": Case(COMPLETIONS, {"top_p": 1.5}, "top_p", ("top_p", "1.5", "1")),
    "top_k below 0": Case(COMPLETIONS, {"top_k": -1}, "top_k", ("top_k", "-1", "0")),
    "min_p above 1": Case(CHAT, {"min_p": 2}, "min_p", ("min_p", "2", "1")),
    "a penalty above 2": Case(CHAT, {"presence_penalty": 2.5}, "presence_penalty", ("presence_penalty", "2.5", "2")),
    "no choices": Case(CHAT, {"n": 0}, "n", ("n:", "0", "1")),
    "too many choices": Case(COMPLETIONS, {"prompt": ["a", "b"], "n": 128}, "n", ("256 choices", "at most 128")),
    "a negative seed": Case(CHAT, {"seed": -1}, "seed", ("seed", "-1", "0")),
    "an empty stop string": Case(COMPLETIONS, {"stop": ["a", ""]}, "stop", ("stop", "at least 1")),
    "too many stop strings": Case(COMPLETIONS, {"stop": ["a"] * 17}, "stop", ("stop", "at most 16")),
    "a stop token that there is not": Case(
        COMPLETIONS, {"stop_token_ids": [2048]}, "stop_token_ids", ("stop_token_ids", "2048", "2047")
    ),
    "a bias on words": Case(COMPLETIONS, {"logit_bias": {"the": 1}}, "logit_bias", ("logit_bias", "'the'", "pattern")),
    "a bias above 100": Case(COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias", ("logit_bias", "101", "100")),
    "a bias on no token": Case(COMPLETIONS, {"logit_bias": {"2048": 1}}, "logit_bias", ("2048", "2047")),
    "too many log-probabilities": Case(COMPLETIONS, {"logprobs": 21}, "logprobs", ("logprobs", "21", "20")),
    "more tokens at least than at most": Case(
        COMPLETIONS, {"min_tokens": 3}, "min_tokens", ("min_tokens", "3", "max_tokens, 2")
    ),
    "options of a stream that is none": Case(
        CHAT, {"stream_options": {"include_usage": True}}, "stream_options", ("stream_options", "stream: true")
    ),
    "unknown options of a stream": Case(
        CHAT, {"stream": True, "stream_options": {"usage": True}}, "stream_options", ("unknown",), code="unknown_field"
    ),
}


def check_error(response: httpx.Response, status: int, says: tuple[str, ...]) -> dict[str, Any]:
    """OpenAI's form and nothing else; returns what is in it."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    position = 0
    for part in says:
        position = error["message"].find(part, position)
        assert position >= 0, f"{part!r} is not said, or not in its place: {error['message']}"
    return error


@pytest.mark.parametrize("what", CASES)
def test_wrong_request(server, what):
    case = CASES[what]
    body = {name: value for name, value in (RIGHT[case.path] | case.changes).items() if value is not None}
    headers = {"Content-Type": "application/json"}
    error = check_error(server.post(case.path, content=json.dumps(body), headers=headers), case.status, case.says)
    assert (error["param"], error["code"]) == (case.param, case.code)


@pytest.mark.parametrize("path", RIGHT)
def test_the_right_request_is_right(server, path):
    assert server.post(path, json=RIGHT[path]).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"{", "application/json", ("body", "invalid JSON")),
        (b"", "application/json", ("body",)),
        (b"[]", "application/json", ("body", "object")),
        (b"\xff\xfe", "application/json", ("body",)),
        (b"[" * 100_000, "application/json", ("body",)),
        (b'{"model": NaN}', "application/json", ("model", "string")),
        (b'{"max_tokens": 1' + b"0" * 5000 + b"}", "application/json", ()),
        (b'{"\\ud800": 1}', "application/json", ()),
        (b"model=x", "application/x-www-form-urlencoded", ("body",)),
    ],
    ids=["cut off", "empty", "list", "UTF-16", "deep", "NaN", "huge number", "half a name", "form"],
)
def test_bodies_that_are_none(server, content, kind, says):
    check_error(server.post(COMPLETIONS, content=content, headers={"Content-Type": kind}), 400, says)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models/" + MODEL, 405),
        ("POST", "/health", 405),
    ],
)
def test_wrong_paths_and_methods(server, method, path, status):
    response = httpx.request(method, server.url + path)
    check_error(response, status, ())
    assert status != 405 or response.headers["Allow"]


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match="temperature: got -1") as raised:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert (raised.value.param, raised.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=RIGHT[CHAT]["messages"])
    assert missing.value.code == "model_not_found"


def test_there_are_many_cases():
    assert len(CASES) >= 20
