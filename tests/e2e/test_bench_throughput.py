"""`bench throughput` on the trained model."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qwen3moe_export.cli import main


def run(export, checkpoint, *arguments: object):
    words = ["bench", "throughput", str(export), "--weights", str(checkpoint), "--threads", "1", *map(str, arguments)]
    return CliRunner().invoke(main, words)


def test_random_prompts(export, checkpoint, tmp_path):
    workload = ("--num-requests", 6, "--input-len", "20-40", "--output-len", 5, "--max-seqs", 3)
    result = run(export, checkpoint, *workload, "--json", tmp_path / "a.json")
    assert result.exit_code == 0 and "of 3 sequences" in result.output, result.output
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert figures["num_output_tokens"] == 30 and figures["num_preemptions"] == 0
    assert 2 < figures["mean_step_seqs"] <= 3 and 120 <= figures["num_prompt_tokens"] <= 240


def test_prompts_of_a_file_in_a_small_pool(export, checkpoint, prompts_file):
    result = run(
        export, checkpoint, "--num-requests", 4, "--prompts", prompts_file, "--output-len", 9, "--kv-tokens", 512
    )
    assert result.exit_code == 0 and "36 output tokens" in result.output, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vocab-size", 9999, "--num-requests", 50), "expected 0 to 2047"),
        (("--input-len", 4000, "--output-len", 200), "at most 4096 together"),
        (("--max-seqs", 9, "--max-step-tokens", 8), "max_step_tokens: got 8"),
        (("--json", "no/such/folder/a.json"), "no such folder"),
        (("--plan", "a.plan"), "plan"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_loaded(export, checkpoint, arguments, message):
    result = run(export, checkpoint, *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
