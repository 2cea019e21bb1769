"""Published models export, and their plans build, from config.json alone, in little time and memory."""

from __future__ import annotations

import json

import pytest
from measure import run_measured
from published_configs import QWEN3_30B_A3B, QWEN3_235B_A22B, QWEN3_CODER_480B_A35B

from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.tensorrt.plan import load_plan_info
from qwen3moe_plugins.library import PLUGINS

MAX_CPU_SECONDS, MAX_BYTES, MAX_FILE_BYTES = 60, 1.5e9, 1e6
MAX_PLAN_CPU_SECONDS, MAX_PLAN_BYTES, MAX_PLAN_FILE_BYTES = 15, 1e9, 50e6


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Qwen3-30B-A3B", QWEN3_30B_A3B),
        pytest.param("Qwen3-235B-A22B", QWEN3_235B_A22B, marks=pytest.mark.slow),
        pytest.param("Qwen3-Coder-480B-A35B", QWEN3_CODER_480B_A35B, marks=pytest.mark.slow),
    ],
)
def test_export_from_config_alone(tmp_path, capsys, name, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    measured = run_measured("onnx", tmp_path / "config.json", "-o", tmp_path / "export")
    size = (tmp_path / "export" / "model.onnx").stat().st_size
    with capsys.disabled():
        print(f"\n{name}: {measured}, model.onnx {size / 1e6:.2f} MB")
    manifest = load_manifest(tmp_path / "export")
    num_layers = values["num_hidden_layers"]
    assert (manifest.op_counts["PagedAttention"], manifest.op_counts["MoE"]) == (num_layers, num_layers)
    num_tensors = sum(len(spec.source_shapes()) for spec in manifest.of_kind("weight"))
    assert num_tensors == num_layers * (9 + 3 * values["num_experts"]) + 3
    assert measured.peak_bytes < MAX_BYTES and size < MAX_FILE_BYTES
    if name == "Qwen3-30B-A3B":
        assert measured.cpu_seconds < MAX_CPU_SECONDS


def test_plan_of_all_layers_without_a_gpu(tmp_path, capsys, built_library):
    pytest.importorskip("tensorrt_rtx")
    built_library(PLUGINS)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B_A3B))
    run_measured("onnx", tmp_path / "config.json", "-o", tmp_path / "export")
    plan = tmp_path / "engine.plan"
    measured = run_measured("engine", tmp_path / "export", "-o", plan, "--tensorrt", "rtx", "--target", "sm89")
    size, info = plan.stat().st_size, load_plan_info(plan)
    with capsys.disabled():
        print(f"\nQwen3-30B-A3B plan: {measured}, {info.plugin_layers} plugin layers, {size / 1e6:.1f} MB")
    assert info.plugin_layers == 48 + 48 + 2 + 95
    assert measured.peak_bytes < MAX_PLAN_BYTES and size < MAX_PLAN_FILE_BYTES
    assert measured.cpu_seconds < MAX_PLAN_CPU_SECONDS
