"""The commands with --tp, --ep and --pp: what they print, and what they refuse."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from click.testing import CliRunner

from qwen3moe_engine import opened_export
from qwen3moe_engine.layout import SINGLE, Layout
from qwen3moe_engine.parallel.verdict import EXIT_CODE, RankFailedError
from qwen3moe_export.cli import main
from qwen3moe_export.config import parse_config
from qwen3moe_export.layout import weight_specs

TP2, PP2 = Layout(tp=2), Layout(pp=2)

A235B = {
    "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960, "mlp_only_layers": [],
    "model_type": "qwen3_moe", "moe_intermediate_size": 1536, "norm_topk_prob": True, "num_attention_heads": 64,
    "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}  # fmt: skip


def run(*arguments: object, code: int = 0) -> str:
    """Standard output, or the one line of the error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output if code == 0 else result.output.splitlines()[-1]


def test_generate_on_many_ranks(bench):
    weights = bench.model("one_kv_head").checkpoint
    tokens = [
        run("generate", bench.export("one_kv_head", layout), "--weights", weights, "--prompt-ids", "5,9,77", *options)
        for layout, options in ((SINGLE, ()), (TP2, ("--tp", 2)), (PP2, ()))
    ]
    assert tokens[0].strip() and tokens == tokens[:1] * 3


def test_generate_wants_the_layout_of_the_export(bench):
    export = bench.export("one_kv_head", TP2)
    said = run("generate", export, "--weights", "nowhere", "--prompt-ids", 5, "--tp", 4, code=2)
    assert said.startswith(f"Error: {export}: got an export for TP2, expected TP4; export again with these options")


def test_a_failed_rank_has_an_exit_code_of_its_own(bench, monkeypatch):
    def fail(*_: object) -> None:
        raise RankFailedError("rank 1 of 2: killed by SIGKILL at start-up")

    monkeypatch.setattr(opened_export, "open_executor", fail)
    export, weights = bench.export("one_kv_head", TP2), bench.model("one_kv_head").checkpoint
    said = run("generate", export, "--weights", weights, "--prompt-ids", 5, code=EXIT_CODE)
    assert said == "Error: rank 1 of 2: killed by SIGKILL at start-up"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tp", 3), "Error: --tp: got 3, expected one of 1, 2, 4, 8; the model's sizes divide by no other degree"),
        (("--tp", 2, "--ep", 2), "Error: layout: got --tp 2 with --ep 2, expected one kind of group; use either"),
        (("--pp", 5), "Error: --pp: got 5, expected one of 1, 2, 3;"),
    ],
)
def test_a_layout_that_is_refused_leaves_nothing(bench, tmp_path, options, said):
    output = tmp_path / "export"
    assert run("onnx", bench.model("one_kv_head").checkpoint, "-o", output, *options, code=2).startswith(said)
    assert not output.exists()


def test_packed_weights_are_of_no_layout(bench, tmp_path):
    export, checkpoint = bench.export("one_kv_head", TP2), bench.model("one_kv_head").checkpoint
    said = run("pack", export, "--weights", checkpoint, "-o", tmp_path / "w.safetensors", code=2)
    assert said.startswith("Error: export: got an export for TP2, expected one for a single rank")


def test_stages_belong_together(bench, tmp_path):
    export = tmp_path / "export"
    shutil.copytree(bench.export("one_kv_head", PP2), export)
    generate = ("generate", export, "--weights", bench.model("one_kv_head").checkpoint, "--prompt-ids", 5)
    said = run("generate", export / "stage_1", *generate[2:], code=2)
    assert said == f"Error: {export / 'stage_1'}: got stage 1 of 2, expected the folder that holds all; give {export}"
    shutil.rmtree(export / "stage_1")
    shutil.copytree(export / "stage_0", export / "stage_1")
    assert f"{export / 'stage_1'}: got stage 0 for PP2" in run(*generate, code=2)
    shutil.rmtree(export / "stage_1")
    assert "got no manifest.json" in run(*generate, code=2)


@pytest.mark.parametrize(
    ("options", "layout"),
    [(("--tp", 8), Layout(tp=8)), (("--ep", 8), Layout(ep=8)), (("--tp", 4, "--pp", 2), Layout(tp=4, pp=2))],
    ids=str,
)
def test_inspect_from_the_config_alone(tmp_path, options, layout):
    config = parse_config(A235B, "values")
    (tmp_path / "config.json").write_text(json.dumps(A235B))
    facts = json.loads(run("inspect", tmp_path / "config.json", *options, "--gpu-memory", 80, "--json"))
    ranks = [section for name, section in facts.items() if name.startswith("memory")]
    assert len(ranks) == layout.pp
    whole = {spec.name: 2 * math.prod(spec.shape) for spec in weight_specs(config, "bf16")}
    experts = sum(num_bytes for name, num_bytes in whole.items() if ".experts." in name)
    assert sum(rank["bytes of these: experts"] for rank in ranks) == experts // layout.group_size
    assert facts["traffic"]["all-reduces a step"] == 2 * 94 + 1
    for rank in ranks:
        parts = [value for name, value in rank.items() if name.startswith("bytes of these")]
        assert sum(parts) == rank["bytes of weights"]
        room = int(80e9 * 0.9) - rank["bytes of weights"]
        assert rank["tokens of KV cache"] == room // rank["bytes of KV cache per token"]
    layers = [len(layout.layers_of(stage, 94)) for stage in range(layout.pp)]
    heads = max(1, 4 // layout.group_size)
    assert [rank["bytes of KV cache per token"] for rank in ranks] == [2 * n * heads * 128 * 2 for n in layers]


def test_a_pipeline_is_printed_stage_by_stage(bench):
    printed = run("inspect", bench.export("one_kv_head", PP2))
    assert all(f"stage {stage}: export" in printed for stage in range(2))
