"""/v1/completions and /v1/chat/completions by OpenAI's own client: the tokens of the engine, in OpenAI's form."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from server_process import MODEL

from qwen3moe_engine import SamplingParams
from qwen3moe_engine.server.chat_protocol import ChatChunk
from qwen3moe_engine.server.completion_protocol import CompletionChunk

GREEDY = SamplingParams(24, ignore_eos=True)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)
ON = {"ignore_eos": True}
PROMPT = "Once upon a time"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who was she?"}]


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL) == model
    assert model.to_dict()["max_model_len"] == 2048


def test_completion(client, engine):
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0, extra_body=ON)
    (expected,) = engine.generate([PROMPT], GREEDY)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (expected.text, "length", None)
    num_prompt = len(engine.encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, 24)
    assert answer.usage.total_tokens == num_prompt + 24 and answer.object == "text_completion"


def test_prompts_in_every_form(client, engine):
    texts = [PROMPT, "She was", "The"]
    ids = [list(engine.encode(text)) for text in texts]
    expected = [completion.text for completion in engine.generate(texts, GREEDY)]
    for prompt in (texts, ids):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0, extra_body=ON)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    for prompt in (texts[1], ids[1]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0, extra_body=ON)
        assert [choice.text for choice in answer.choices] == expected[1:2]


def test_defaults_are_those_of_openai(client):
    """16 tokens, drawn at temperature 1: two runs differ."""
    answers = [client.completions.create(model=MODEL, prompt=PROMPT, extra_body=ON) for _ in range(2)]
    assert [answer.usage.completion_tokens for answer in answers] == [16, 16]
    assert answers[0].choices[0].text != answers[1].choices[0].text


def test_every_parameter_reaches_the_sampler(client, engine):
    params = SamplingParams(
        20, min_new_tokens=9, temperature=1.2, top_k=50, top_p=0.9, min_p=0.01, presence_penalty=0.5,
        frequency_penalty=0.4, repetition_penalty=1.1, seed=2**63 + 1, stop=("the",), stop_token_ids=(13, 14),
        logit_bias={14: 3.0, 300: -100.0}, logprobs=2,
    )  # fmt: skip
    extra = {"min_tokens": 9, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1, "stop_token_ids": [13, 14]}
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=1.2, top_p=0.9, presence_penalty=0.5,
        frequency_penalty=0.4, seed=2**63 + 1, stop="the", logit_bias={"14": 3.0, "300": -100.0}, logprobs=2,
        extra_body=extra,
    )  # fmt: skip
    (expected,) = engine.generate([PROMPT], params)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert choice.logprobs.token_logprobs == pytest.approx([found.logprob for found in expected.logprobs], abs=1e-3)
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens == len(expected.token_ids)


def test_choices_draw_by_their_seeds(client, engine):
    answer = client.completions.create(
        model=MODEL, prompt=[PROMPT, "She was"], n=3, max_tokens=24, temperature=0.9, top_p=0.95, seed=7, extra_body=ON
    )
    seeds = [replace(DRAWN, seed=7 + index) for index in range(3)]
    expected = [engine.generate([prompt], own)[0].text for prompt in (PROMPT, "She was") for own in seeds]
    assert [choice.text for choice in answer.choices] == expected and len(set(expected)) == 6
    assert answer.usage.prompt_tokens == len(engine.encode(PROMPT)) + len(engine.encode("She was"))
    assert answer.usage.completion_tokens == 6 * 24


def test_concurrent_answers_are_those_of_each_alone(client, engine):
    def ask(seed: int) -> str:
        prompt = f"{PROMPT} {seed % 5}"
        answer = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=24, temperature=0.9, top_p=0.95, seed=seed, extra_body=ON
        )
        return answer.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(24)))
    alone = [engine.generate([f"{PROMPT} {seed % 5}"], replace(DRAWN, seed=seed))[0].text for seed in range(24)]
    assert together == alone


def test_a_stream_is_the_answer(client, server):
    asked = dict(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0.8, seed=3, logprobs=2, extra_body=ON)
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert last.choices == [] and all(part.usage is None for part in parts)
    counted = whole.usage.to_dict() | {"prompt_tokens_details": None}
    assert last.usage.to_dict() | {"prompt_tokens_details": None} == counted
    joined = [token for part in parts for token in part.choices[0].logprobs.tokens]
    offsets = [offset for part in parts for offset in part.choices[0].logprobs.text_offset]
    assert (joined, offsets) == (whole.choices[0].logprobs.tokens, whole.choices[0].logprobs.text_offset)
    for chunk in chunks:
        CompletionChunk.model_validate(chunk.to_dict())


def test_events_are_ascii(server, client, engine):
    """A client may take characters such as U+2028 for the end of a line, and with it of an event."""
    half = engine.encode("é")[0]  # the first of two bytes, again and again: each is U+FFFD
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "logit_bias": {str(half): 100}}
    response = server.post("/v1/completions", json=body | {"stream": True})
    assert response.content.isascii() and response.content.endswith(b"data: [DONE]\n\n")
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**body, stream=True))
    assert text == client.completions.create(**body).choices[0].text == 16 * "\ufffd"


def test_choices_stream_together(client):
    asked = dict(model=MODEL, prompt=[PROMPT, "He"], n=2, max_tokens=20, temperature=0.8, seed=3, extra_body=ON)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in client.completions.create(**asked).choices]


def test_stop_strings(client):
    asked = dict(model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, extra_body=ON)
    text = client.completions.create(**asked).choices[0].text
    for stop in (text[10:14], [text[30:33], text[20:26]]):
        first = min(text.index(item) for item in ([stop] if isinstance(stop, str) else stop))
        (choice,) = client.completions.create(**asked, stop=stop).choices
        assert (choice.text, choice.finish_reason) == (text[:first], "stop")
        chunks = list(client.completions.create(**asked, stop=stop, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[:first]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_end_of_sequence_token_ends_the_text(client):
    """Forced by its bias, it is counted and not shown."""
    answer = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, logit_bias={"2047": 100})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1


def test_log_probabilities_of_a_completion(client, engine):
    (expected,) = engine.generate([PROMPT], replace(GREEDY, logprobs=3))
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0, logprobs=3, extra_body=ON
    )
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == expected.text
    assert found.text_offset == [len("".join(found.tokens[:index])) for index in range(24)]
    for token, logprob, best, right in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, expected.logprobs, strict=True
    ):
        assert logprob == pytest.approx(right.logprob, abs=1e-3) and best[token] == logprob == max(best.values())
        assert len(best) == 3


def test_chat(client, engine):
    (expected,) = engine.generate([MESSAGES], GREEDY)
    for content in ("Who was she?", [{"type": "text", "text": "Who was she?"}]):
        messages = [MESSAGES[0], {"role": "user", "content": content}]
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=24, temperature=0, extra_body=ON
        )
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
        assert (choice.finish_reason, choice.logprobs) == ("length", None)
        assert answer.usage.prompt_tokens == len(engine.encode(MESSAGES))
        assert answer.object == "chat.completion"


def test_chat_goes_on_as_long_as_it_fits(client, engine):
    """Nobody says how long: up to the end of the sequence, or what the pool holds."""
    prompt = [{"role": "user", "content": "She " * 1995}]
    room = 2048 - len(engine.encode(prompt))
    assert 0 < room < 60
    answer = client.chat.completions.create(model=MODEL, messages=prompt, temperature=0, extra_body=ON)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (room, "length")


def test_chat_stream(client):
    asked = dict(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0.8, seed=5, n=2, extra_body=ON)
    whole = client.chat.completions.create(**asked)
    texts, roles, reasons = ["", ""], [], []
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content
        roles += [choice.delta.role] if choice.delta.role else []
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 2 and reasons == ["length"] * 2
    assert chunks[-1].usage.completion_tokens == 48 and chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    for chunk in chunks:
        ChatChunk.model_validate(chunk.to_dict())


def test_log_probabilities_of_a_chat(client, engine):
    (expected,) = engine.generate([MESSAGES], replace(GREEDY, logprobs=2))
    asked = dict(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, logprobs=True, extra_body=ON)
    answer = client.chat.completions.create(**asked, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(found.bytes) for found in content).decode() == expected.text
    for found, right in zip(content, expected.logprobs, strict=True):
        assert found.logprob == pytest.approx(right.logprob, abs=1e-3)
        assert found.top_logprobs[0].token == found.token and len(found.top_logprobs) == 2
    streamed = [
        found
        for chunk in client.chat.completions.create(**asked, stream=True)
        for found in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [found.token for found in streamed] == [found.token for found in content]
    assert not any(found.top_logprobs for found in streamed)


def test_a_prompt_seen_before_is_not_computed_again(client, engine):
    prompt = list(engine.encode("Never " * 200))
    answers = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, temperature=0, extra_body=ON)
        for _ in range(2)
    ]
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
    assert cached == [0, (len(prompt) - 1) // 16 * 16] and answers[0].choices[0].text == answers[1].choices[0].text


def test_the_higher_priority_is_served_first(server, client):
    """32 requests run at once; of those that wait behind them, the last to come has the highest priority."""
    ended: list[int] = []

    def ask(priority: int) -> None:
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, extra_body=ON | {"priority": priority}
        )
        ended.append(priority)

    with ThreadPoolExecutor(40) as pool:
        first = [pool.submit(ask, 0) for _ in range(32)]
        server.until(lambda found: found["qwen3moe_requests_running"] == 32)
        late = [pool.submit(ask, priority) for priority in (-3, -2, -1, 5)]
        for task in (*first, *late):
            task.result()
    assert ended.index(5) < min(ended.index(-3), ended.index(-2), ended.index(-1))
