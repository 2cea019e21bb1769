"""The engine as a library: from an export on disk to tokens, with prompts in every form."""

from __future__ import annotations

import asyncio

import pytest

from qwen3moe_engine import AsyncEngine, Chat, Engine, EngineOptions, OutputStream, SamplingParams
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_plugins.errors import InputError

OPTIONS = EngineOptions(num_threads=1, kv_tokens=1024)
PARAMS = SamplingParams(12, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(export, checkpoint) -> Engine:
    return Engine.from_export(export, checkpoint, OPTIONS)


def test_every_form_of_prompt(engine, checkpoint):
    messages = [{"role": "user", "content": "She was"}]
    text = "<|im_start|>user\nShe was<|im_end|>\n<|im_start|>assistant\n"
    ids = Tokenizer(checkpoint).encode(text)
    completions = engine.generate([text, ids, messages, Chat(messages)], PARAMS)
    assert len(set(completions)) == 1 and len(completions[0].token_ids) == 12
    assert completions[0].text == Tokenizer(checkpoint).decode(completions[0].token_ids)


def test_params_for_each_and_timing(engine):
    completions = engine.generate(["She was", "He"], [SamplingParams(3), SamplingParams(5, ignore_eos=True)])
    assert [len(completion.token_ids) for completion in completions] == [3, 5]
    timing = completions[1].timing
    assert timing and 0 <= timing.queue < timing.first_token < timing.total
    assert timing.total == pytest.approx(timing.first_token + 4 * timing.per_token)


def test_streams_say_what_generate_says(engine, export, checkpoint):
    prompts = ["She was", "Once upon a time", "The old man"]
    params = SamplingParams(24, ignore_eos=True, temperature=0.8, seed=3)
    alone = [engine.generate([prompt], params)[0] for prompt in prompts]

    async def read(stream: OutputStream) -> str:
        return "".join([output.text or "" async for output in stream])

    async def stream_all() -> list[str]:
        async with AsyncEngine(Engine.from_export(export, checkpoint, OPTIONS)) as streaming:
            streams = [await streaming.submit(prompt, params) for prompt in prompts]
            return [await read(stream) for stream in streams]

    assert asyncio.run(stream_all()) == [completion.text for completion in alone]


def test_the_pool_is_what_was_asked_for(engine):
    assert engine.stats().num_blocks == 64 and engine.max_request_tokens == 1024
    with pytest.raises(InputError, match="at most 1024 together"):
        engine.generate(["She was"], SamplingParams(1024))


def test_one_prompt_is_no_list(engine):
    with pytest.raises(InputError, match="prompts: got one, expected a list"):
        engine.generate("She was", PARAMS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EngineOptions(executor="cuda"), "'cuda', expected onnxruntime or tensorrt"),
        (EngineOptions(cuda_graphs=True, random_weights=1), "random_weights, cuda_graphs"),
        (EngineOptions(executor="tensorrt"), "plan: got none"),
        (EngineOptions(max_seqs=0), "max_seqs: got 0"),
        (EngineOptions(max_seqs=64, max_step_tokens=63), "max_step_tokens: got 63, expected at least max_seqs, 64"),
        (EngineOptions(kv_tokens=-1), "kv_tokens: got -1"),
    ],
)
def test_options_that_do_not_go_together(export, checkpoint, options, said):
    with pytest.raises(InputError, match=said):
        Engine.from_export(export, checkpoint, options)


def test_weights_are_needed(export):
    with pytest.raises(InputError, match="weights: got none"):
        Engine.from_export(export, None)
