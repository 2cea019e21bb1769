"""Greedy tokens of the whole chain are those of transformers' generate, whoever shares the batch."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import Qwen3MoeForCausalLM

from qwen3moe_engine.block_manager import BlockManager
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.request import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.cli import main

NEW_TOKENS = 64
NUM_BLOCKS, BLOCK_SIZE = 160, 16


@pytest.fixture(scope="module")
def prompts(checkpoint, prompts_file) -> list[list[int]]:
    encode = Tokenizer(checkpoint).encode
    ids = [encode(line) for line in prompts_file.read_text().splitlines()]
    assert len(ids) == 20 and len(set(map(len, ids))) > 10, "prompts of unequal length"
    return ids


@pytest.fixture(scope="module")
def expected(checkpoint, prompts) -> list[list[int]]:
    """By transformers, one prompt at a time, in fp32, on behind an end-of-sequence token."""
    model = Qwen3MoeForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    with torch.no_grad():
        return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]


@pytest.fixture(scope="module")
def executor(export, checkpoint) -> OnnxRuntimeExecutor:
    config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
    return OnnxRuntimeExecutor(
        export, load_manifest(export), open_checkpoint(checkpoint), config, lambda plans, _: plans
    )


def make_engine(executor, max_step_tokens: int = 256, max_seqs: int = 32, num_blocks: int = NUM_BLOCKS) -> Engine:
    """With a pool of the executor's first num_blocks."""
    scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), executor.max_model_len, max_step_tokens, max_seqs)
    return Engine(executor, scheduler, vocab_size=2048, eos_token_ids=(2045, 2047))


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
