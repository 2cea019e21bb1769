"""Plans for architectures that are not here: TensorRT-RTX builds them on a CPU. Running them is tested on GPUs.

Every custom operator has to become a plugin layer: the parser inlines one whose plugin it does not find, silently.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tensorrt import polygraphy_network
from qwen3moe_engine.tensorrt.build import BuildError, build_plan, check_request, profile_ranges, profile_shapes
from qwen3moe_engine.tensorrt.flavour import RTX, load_tensorrt
from qwen3moe_engine.tensorrt.plan import Limits, check_gpu, check_plan, find_plan, load_plan_info, sidecar_path
from qwen3moe_export.cli import main
from qwen3moe_plugins.errors import InputError
from qwen3moe_plugins.library import PLUGINS

pytest.importorskip("tensorrt_rtx")

TARGETS = ("sm80", "sm86", "sm89", "sm120")
LIMITS = Limits(max_tokens=256, max_seqs=16, max_context=1024, block_size=16)


@pytest.fixture(scope="session")
def plugins(built_library) -> Path:
    return built_library(PLUGINS)


@pytest.fixture(scope="session")
def tensorrt(plugins):
    return load_tensorrt("rtx")


@pytest.fixture(scope="session", params=["bf16", "fp16"])
def export_16(request, checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ["onnx", str(checkpoint), "-o", str(folder), "--dtype", request.param]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    return folder


def test_all_executors_of_a_process_have_one_logger(tensorrt):
    assert load_tensorrt("rtx").logger is tensorrt.logger


def run_engine(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["engine", *map(str, arguments)])


@pytest.mark.parametrize("target", TARGETS)
def test_builds_for_each_target_and_dtype(export_16, target, tensorrt):
    manifest = load_manifest(export_16)
    plan, info = build_plan(export_16, manifest, tensorrt, LIMITS, (target,))
    assert len(plan) > 100_000
    assert info.plugin_layers == sum(manifest.op_counts.values()) == 4 + 4 + 2 + 7
    assert (info.flavour, info.targets, info.dtype) == ("rtx", (target,), manifest.dtype)


def test_command_writes_plan_and_sidecar(export_16, tmp_path, plugins):
    path = tmp_path / "engine.plan"
    result = run_engine(export_16, "-o", path, "--tensorrt", "rtx", "--target", "sm89,sm120")
    assert result.exit_code == 0, result.output
    info = load_plan_info(path)
    assert (info.targets, info.gpu) == (("sm89", "sm120"), None)
    assert info.limits.max_context == 4096  # the model's, as the default is more
    check_plan(info, path, export_16, plugins, "rtx", info.tensorrt_version)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["engine.plan", "engine.plan.json"]


def test_operators_that_are_not_plugins_are_counted(export_16, tensorrt):
    manifest = load_manifest(export_16)
    graph = manifest.graphs["model.onnx"]
    graph = replace(graph, op_counts=graph.op_counts | {"MoE": 5})
    too_many = replace(manifest, graphs=manifest.graphs | {"model.onnx": graph})
    with pytest.raises(BuildError, match="17 plugin layers in the network, 18 operators in the manifest"):
        build_plan(export_16, too_many, tensorrt, LIMITS, ("sm89",))


def test_a_pipeline_has_a_plan_for_each_stage(checkpoint, tmp_path, plugins):
    arguments = ["onnx", str(checkpoint), "-o", str(tmp_path), "--dtype", "bf16", "--pp", "2"]
    CliRunner().invoke(main, arguments, catch_exceptions=False)
    result = run_engine(tmp_path, "--tensorrt", "rtx", "--target", "sm89")
    assert result.exit_code == 0, result.output
    for stage in load_stages(tmp_path):
        plan = find_plan(stage.folder, None, num_stages=2)
        assert plan == find_plan(stage.folder, Path(plan.name), num_stages=2)
        assert load_plan_info(plan).plugin_layers == sum(stage.manifest.op_counts.values())
    for given, says in ((Path("a/b.plan"), "a file name"), (None, "expected one plan")):
        with pytest.raises(InputError, match=says):
            find_plan(tmp_path, given, num_stages=2)
    result = run_engine(tmp_path, "--tensorrt", "rtx", "--target", "sm89", "-o", "one.plan")
    assert result.exit_code == 2 and "a plan for each stage" in result.output


def test_experts_that_the_kernels_cannot_split_are_refused(export_16):
    """Of a width that no load of 16 bytes divides."""
    manifest = load_manifest(export_16)
    inputs = tuple(
        replace(spec, shape=(*spec.shape[:-1], 36)) if spec.name.endswith("experts.down_proj") else spec
        for spec in manifest.inputs
    )
    with pytest.raises(InputError, match="an expert's width on a rank: got 36, expected a multiple of 8"):
        check_request(replace(manifest, inputs=inputs), RTX, LIMITS, ("sm89",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "CUDA device 0: got cuda"),
        (["--target", "sm90"], "--target: got sm90, expected sm120"),
        (["--target", "sm89", "--max-context", 9999], "--max-context: got 9999, expected at most 4096"),
        (["--target", "sm89", "--max-tokens", 8], "--max-tokens: got 8 below --max-seqs 256"),
        (["--target", "sm89", "--plugins", "."], "libtensorrt_rtx.so: got no such file"),
        (["--tensorrt", "10"], "--tensorrt: got no package tensorrt"),
    ],
)
def test_bad_requests_are_refused_by_name(export_16, tmp_path, plugins, options, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_engine(export_16, "-o", "engine.plan", "--tensorrt", "rtx", *options)
    assert result.exit_code == 2
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


def test_fp32_has_no_plugins(checkpoint, tmp_path, plugins):
    folder = tmp_path / "fp32"
    CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(folder), "--dtype", "fp32"], catch_exceptions=False)
    result = run_engine(folder, "--tensorrt", "rtx", "--target", "sm89")
    assert result.exit_code == 2
    assert "got fp32, expected bf16 or fp16 for TensorRT rtx" in result.output


def test_polygraphy_builds_through_the_network_script(export_16, tmp_path, plugins):
    manifest = load_manifest(export_16)
    options: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    for name, shapes in profile_shapes(manifest, profile_ranges(manifest, LIMITS)[0]).items():
        for values, shape in zip(options.values(), shapes, strict=True):
            values.append(f"{name}:[{','.join(map(str, shape))}]")
    command = [str(Path(sys.executable).with_name("polygraphy")), "convert", polygraphy_network.__file__]
    command += ["--model-type", "trt-network-script", "--convert-to", "trt", "-o", str(tmp_path / "polygraphy.plan")]
    command += ["--compute-capabilities", "8.9", "--preview-features", "aliased_plugin_io_10_03"]
    for which, values in options.items():
        command += [f"--trt-{which}-shapes", *values]
    variables = {"QWEN3MOE_EXPORT": str(export_16), "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    run = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "polygraphy.plan").stat().st_size > 100_000


@pytest.fixture
def built(export_16, tmp_path, tensorrt) -> tuple[Path, Path]:
    """A copy of the export and a plan of it."""
    folder = shutil.copytree(export_16, tmp_path / "export")
    result = run_engine(folder, "-o", tmp_path / "engine.plan", "--tensorrt", "rtx", "--target", "sm89")
    assert result.exit_code == 0, result.output
    return folder, tmp_path / "engine.plan"


def test_a_changed_plan_is_refused(built):
    _, plan = built
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="sha256"):
        load_plan_info(plan)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("manifest_sha256", "0" * 64, "manifest.json"),
        ("plugins_sha256", "0" * 64, "libqwen3moe_plugins.so"),
        ("tensorrt_version", "1.0", "TensorRT rtx"),
        ("flavour", "10", "expected 10"),
    ],
)
def test_whatever_a_plan_was_not_built_with_is_refused_by_name(built, plugins, field, value, says):
    folder, plan = built
    info = load_plan_info(plan)
    version = info.tensorrt_version
    with pytest.raises(InputError, match=says):
        check_plan(replace(info, **{field: value}), plan, folder, plugins, RTX.name, version)


def test_another_gpu_is_refused_by_name(built):
    """Of a plan for targets, and of one that was built on a GPU for the same."""
    _, plan = built
    for_target = load_plan_info(plan)
    built_there = replace(for_target, gpu="NVIDIA L40")
    check_gpu(for_target, plan, "NVIDIA L4", "sm89")
    check_gpu(built_there, plan, "NVIDIA L40", "sm89")
    with pytest.raises(
        InputError, match=r"engine.plan: got NVIDIA H200 \(sm90\), expected sm89, which it was built for"
    ):
        check_gpu(for_target, plan, "NVIDIA H200", "sm90")
    for gpu, target in (("NVIDIA H200", "sm90"), ("NVIDIA L4", "sm89")):
        with pytest.raises(InputError, match=rf"got {gpu} \({target}\), expected NVIDIA L40 \(sm89\)"):
            check_gpu(built_there, plan, gpu, target)


@pytest.mark.parametrize("spoil", ["missing", "unknown field", "no JSON"])
def test_a_bad_sidecar_is_refused(built, spoil):
    _, plan = built
    sidecar = sidecar_path(plan)
    if spoil == "missing":
        sidecar.unlink()
    elif spoil == "unknown field":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"extra": 1}))
    else:
        sidecar.write_text("{")
    with pytest.raises(InputError, match="build the plan again"):
        load_plan_info(plan)
