"""Greedy tokens of the whole chain are those of transformers' generate, and drawn ones those of the request alone.

Whoever shares the batch. Drawn tokens are compared with draws from transformers' logits too.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import Qwen3MoeForCausalLM

from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.request import Completion
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.sampling_rule import draw
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.cli import main

NEW_TOKENS = 64
NUM_BLOCKS, BLOCK_SIZE = 160, 16
SAMPLED = SamplingParams(16, ignore_eos=True, temperature=0.9, top_k=200, top_p=0.95, min_p=0.01, seed=11)


@pytest.fixture(scope="module")
def prompts(checkpoint, prompts_file) -> list[list[int]]:
    encode = Tokenizer(checkpoint).encode
    ids = [encode(line) for line in prompts_file.read_text().splitlines()]
    assert len(ids) == 20 and len(set(map(len, ids))) > 10, "prompts of unequal length"
    return ids


@pytest.fixture(scope="module")
def model(checkpoint) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(model, prompts) -> list[list[int]]:
    """By transformers, one prompt at a time, in fp32, on behind an end-of-sequence token."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    with torch.no_grad():
        return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]


@pytest.fixture(scope="module")
def executor(export, checkpoint) -> OnnxRuntimeExecutor:
    config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
    return OnnxRuntimeExecutor(
        export, load_manifest(export), open_checkpoint(checkpoint), config, lambda plans, _: plans
    )


def make_engine(
    executor, max_step_tokens: int = 256, max_seqs: int = 32, num_blocks: int = NUM_BLOCKS, tokenizer=None
) -> Engine:
    """With a pool of the executor's first num_blocks."""
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), executor.max_model_len, max_step_tokens, max_seqs)
    return Engine(executor, scheduler, vocab_size=2048, eos_token_ids=(2045, 2047), tokenizer=tokenizer)


def complete(executor, prompts, params: SamplingParams, **settings) -> list[Completion]:
    """By an engine of its own; settings are those of `make_engine`."""
    engine = make_engine(executor, **settings)
    completions = engine.generate(prompts, params)
    assert engine.stats().num_blocks_used == 0
    return completions


def generate(engine, prompts) -> list[list[int]]:
    completions = engine.generate(prompts, SamplingParams(NEW_TOKENS, ignore_eos=True))
    assert engine.stats().num_blocks_used == 0
    return [list(completion.token_ids) for completion in completions]


def test_batched_together(executor, prompts, expected):
    assert generate(make_engine(executor), prompts) == expected


def test_a_pool_for_a_few(executor, prompts, expected):
    """40 blocks, where all together need 125: requests wait, are preempted, and are computed again."""
    engine = make_engine(executor, num_blocks=40)
    assert generate(engine, prompts) == expected
    assert engine.stats().num_preemptions > 0 and engine.stats().num_evictions > 0


def test_a_second_time_from_the_prefix_cache(executor, prompts, expected):
    engine = make_engine(executor)
    assert [generate(engine, prompts) for _ in range(2)] == [expected, expected]
    num_full = sum((len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE for prompt in prompts)
    assert engine.stats().num_prefix_hits == num_full > 300


def test_each_alone(executor, prompts, expected):
    assert [generate(make_engine(executor), [prompt])[0] for prompt in prompts] == expected


def test_chunked_prefill(executor, prompts, expected):
    """Steps of 24 tokens: most prompts are prefilled in parts, beside up to seven that decode."""
    assert generate(make_engine(executor, max_step_tokens=24, max_seqs=8), prompts) == expected


@pytest.mark.parametrize(
    "params",
    [
        SAMPLED,
        replace(SAMPLED, temperature=1.3, top_k=0, top_p=1.0, min_p=0.0, frequency_penalty=0.5, presence_penalty=0.3),
        replace(SAMPLED, temperature=0.0, repetition_penalty=1.2, logit_bias={13: -5.0}),
    ],
    ids=["truncated", "penalized", "greedy"],
)
def test_seeded_tokens_are_those_of_the_request_alone(executor, prompts, params):
    """Together, and in steps of 24 tokens, which put prompts in parts beside others that decode."""
    alone = [complete(executor, [prompt], params)[0] for prompt in prompts]
    assert complete(executor, prompts, params) == alone
    assert complete(executor, prompts, params, max_step_tokens=24, max_seqs=8) == alone


def test_drawn_tokens_are_those_of_transformers_logits(executor, model, prompts):
    """A draw differs from one of the engine's logits only where the two round to both sides of a border: never here."""
    for prompt, completion in zip(prompts[:6], complete(executor, prompts[:6], SAMPLED), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1].numpy()
        drawn = [draw(row, SAMPLED, offset) for offset, row in enumerate(logits)]
        assert drawn == list(completion.token_ids)


def test_other_seeds_draw_other_tokens(executor, prompts):
    runs = [complete(executor, prompts[:4], replace(SAMPLED, seed=seed)) for seed in (1, 2, None, None)]
    assert len({tuple(completion.token_ids for completion in run) for run in runs}) == 4
    again = [complete(executor, [p], replace(SAMPLED, seed=c.seed))[0] for p, c in zip(prompts, runs[2], strict=False)]
    assert again == runs[2], "a seed that was drawn is told, and draws the same again"


def test_stop_strings_cut_the_text(executor, checkpoint, prompts):
    """Each of the words and of the ends of words that a greedy text has stops it where that is in it first."""
    tokenizer = Tokenizer(checkpoint)
    params = SamplingParams(NEW_TOKENS, ignore_eos=True)
    (whole,) = complete(executor, prompts[:1], params, tokenizer=tokenizer)
    stops = [whole.text[at : at + 5] for at in range(0, len(whole.text) - 5, 29)]
    for stop in stops:
        (cut,) = complete(executor, prompts[:1], replace(params, stop=(stop, "not in it")), tokenizer=tokenizer)
        assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
        assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
        before = tokenizer.decode(cut.token_ids[:-1])
        assert stop not in before and stop in tokenizer.decode(cut.token_ids), "it ended at the first token that could"


def test_logprobs_are_those_of_transformers(executor, model, prompts):
    (completion,) = complete(executor, prompts[:1], replace(SAMPLED, logprobs=5))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompts[0], *completion.token_ids]])).logits[0, len(prompts[0]) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    assert [found.token_id for found in completion.logprobs] == list(completion.token_ids)
    for found, row in zip(completion.logprobs, expected, strict=True):
        assert found.logprob == pytest.approx(row[found.token_id].item(), abs=1e-3)
        np.testing.assert_allclose([logprob for _, logprob in found.best], row.topk(5).values, atol=1e-3)


def invoke_json(*args: str) -> list[dict]:
    result = CliRunner().invoke(main, ["generate", *args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_command_on_a_file_of_prompts(export, checkpoint, prompts_file, expected):
    args = [str(export), "--weights", str(checkpoint), "--prompts", str(prompts_file)]
    rows = invoke_json(*args, "--max-new-tokens", "20", "--ignore-eos")
    decode = Tokenizer(checkpoint).decode
    assert rows == [{"token_ids": ids[:20], "text": decode(ids[:20]), "finish_reason": "length"} for ids in expected]


def test_command_on_text_and_on_ids(export, checkpoint, prompts, prompts_file, expected):
    args = [str(export), "--weights", str(checkpoint), "--max-new-tokens", "8", "--ignore-eos"]
    line, ids = prompts_file.read_text().splitlines()[3], prompts[3]
    by_text = invoke_json(*args, "--prompt", line)
    by_ids = invoke_json(*args, "--prompt-ids", ", ".join(map(str, ids)))
    assert by_text == by_ids and by_text[0]["token_ids"] == expected[3][:8]
    printed = CliRunner().invoke(main, ["generate", *args, "--prompt", line], catch_exceptions=False)
    assert printed.stdout == by_text[0]["text"] + "\n"


def test_command_stops_at_the_end_of_a_sequence(export, checkpoint, tmp_path, expected):
    """The same export with the fourth token of the answer for its end: that token is the last."""
    for file in export.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["eos_token_ids"] = [expected[1][3]]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (row,) = invoke_json(str(tmp_path), "--weights", str(checkpoint), "--prompt", "She was")
    end = expected[1].index(expected[1][3])
    assert (row["token_ids"], row["finish_reason"]) == (expected[1][: end + 1], "stop")


def test_packed_weights_without_a_tokenizer(export, checkpoint, tmp_path, prompts, expected):
    packed = str(tmp_path / "weights.safetensors")
    CliRunner().invoke(main, ["pack", str(export), "--weights", str(checkpoint), "-o", packed], catch_exceptions=False)
    args = [str(export), "--weights", packed, "--prompt-ids", ",".join(map(str, prompts[0])), "--max-new-tokens", "5"]
    assert invoke_json(*args) == [{"token_ids": expected[0][:5], "text": None, "finish_reason": "length"}]
    result = CliRunner().invoke(main, ["generate", *args], catch_exceptions=False)
    assert result.stdout == ",".join(map(str, expected[0][:5])) + "\n"


def test_command_samples(export, checkpoint):
    args = [str(export), "--weights", str(checkpoint), "--prompt", "She was", "--max-new-tokens", "12"]
    drawn = invoke_json(*args, "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01",
                        "--presence-penalty", "0.2", "--frequency-penalty", "0.2", "--repetition-penalty", "1.1",
                        "--min-new-tokens", "12", "--seed", "5", "--logprobs", "2")  # fmt: skip
    (row,) = drawn
    assert list(row) == ["token_ids", "finish_reason", "text", "logprobs", "seed"] and row["seed"] == 5
    assert len(row["token_ids"]) == 12 and row["finish_reason"] == "length"
    for token_id, found in zip(row["token_ids"], row["logprobs"], strict=True):
        assert found["token_id"] == token_id and len(found["best"]) == 2 and found["logprob"] <= 0


def test_command_stops_at_strings(export, checkpoint):
    args = [str(export), "--weights", str(checkpoint), "--prompt", "She was", "--ignore-eos"]
    (whole,) = invoke_json(*args)
    first, second = whole["text"][20:24], whole["text"][40:44]
    (row,) = invoke_json(*args, "--stop", second, "--stop", first)
    assert (row["text"], row["finish_reason"]) == (whole["text"][: whole["text"].index(first)], "stop")
