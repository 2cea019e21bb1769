"""What of a stream is output, and when a stream is whole."""

from __future__ import annotations

import json

import pytest

from qwen3moe_engine.bench.event_stream import EventStream, StreamError, message_of


def feed(*events: object) -> EventStream:
    """Each a second after the one before."""
    stream = EventStream()
    for now, event in enumerate(events):
        data = event if isinstance(event, str) else json.dumps(event)
        stream.feed(f"data: {data}\r\n".encode(), float(now))
    return stream


def completion(text: str, finish_reason: str | None = None, **more: object) -> dict:
    return {"choices": [{"text": text, "finish_reason": finish_reason, **more}]}


def chat(delta: dict, finish_reason: str | None = None, **more: object) -> dict:
    return {"choices": [{"delta": delta, "finish_reason": finish_reason, **more}]}


def test_parts_of_a_completion():
    """A token in the middle of a character is an empty text, and output; a bare finish is not."""
    stream = feed(completion("a"), completion(""), completion("b"), completion("", "stop"), "[DONE]")
    stream.check_whole()
    assert stream.chunk_times == [0, 1, 2] and stream.finish_reason == "stop" and stream.num_output is None


def test_the_last_part_may_bring_text():
    assert feed(completion("a"), completion("b", "length")).chunk_times == [0, 1]


def test_the_role_that_opens_a_chat_is_no_output():
    stream = feed(chat({"role": "assistant", "content": ""}), chat({"content": "a"}), chat({}, "stop"), "[DONE]")
    stream.check_whole()
    assert stream.chunk_times == [1]


def test_log_probabilities_count_tokens():
    counted = feed(
        completion("ab", logprobs={"tokens": ["a", "b"]}), completion("", "length", logprobs={"tokens": ["c"]})
    )
    assert counted.num_counted == 3 and counted.chunk_times == [0, 1]
    assert feed(chat({"content": "ab"}, logprobs={"content": [{}, {}]})).num_counted == 2


def test_usage_is_read_from_the_event_that_has_it():
    stream = feed(completion("a", usage=None), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert (stream.num_prompt, stream.num_output) == (3, 4)


def test_comments_and_blank_lines_are_nothing():
    stream = EventStream()
    for line in (b"\n", b": ping\n", b"event: x\n"):
        stream.feed(line, 0.0)
    assert stream == EventStream()


@pytest.mark.parametrize("events", [(), (completion("a", "stop"),), (completion("a"), "[DONE]"), ("[DONE]",)])
def test_a_stream_without_finish_or_end_is_truncated(events):
    with pytest.raises(StreamError) as error:
        feed(*events).check_whole()
    assert error.value.kind == "truncated"


@pytest.mark.parametrize(
    "data", ["{", "[1]", "null", '{"choices": 3}', '{"choices": [3]}', '{"usage": {}, "choices": 1}']
)
def test_what_is_no_completion_is_told(data):
    with pytest.raises(StreamError) as error:
        feed(data)
    assert error.value.kind == "not JSON" and data[:5] in str(error.value)


def test_an_error_in_the_stream_is_told():
    with pytest.raises(StreamError, match="engine died") as error:
        feed(completion("a"), {"error": {"message": "engine died"}})
    assert error.value.kind == "error in stream"


@pytest.mark.parametrize("body", ["", "<html>", "[1]", '{"error": "no"}', "x" * 999])
def test_an_error_in_another_form_is_shown_as_it_is(body):
    assert message_of(body) == body[:200]
    assert message_of('{"error": {"message": "too long", "code": 4}}') == "too long"
