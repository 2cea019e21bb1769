"""The comparison on the trained model: its verdicts, its gate against broken stages, its bundle, its command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.logits import HostLogits
from qwen3moe_engine.manifest import Manifest, Rope, load_manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_engine.weights import no_progress
from qwen3moe_export.cli import main
from qwen3moe_export.verify.compare import Comparison, compare
from qwen3moe_export.verify.executor_stage import executor_stage
from qwen3moe_export.verify.gate import Gate
from qwen3moe_export.verify.golden import Golden, read_golden
from qwen3moe_export.verify.inputs import make_inputs
from qwen3moe_export.verify.stages import AS_STORED, Precision, StageDescription
from qwen3moe_plugins.errors import InputError

CHECKPOINT = Path(__file__).parents[1] / "data" / "qwen3moe-tiny"
DTYPES = ("fp32", "bf16", "fp16")
NEW_TOKENS = 6

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["verify", *map(str, args)], prog_name="qwen3moe-export")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# The trained model, through every stage


@dataclass(frozen=True)
class Verified:
    """A comparison that passed: its export, its bundle, what it printed and wrote."""

    export: Path
    golden: Path
    output: str
    values: dict
    report: str


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Verified]:
    done: dict[str, Verified] = {}

    def verify(dtype: str) -> Verified:
        if dtype not in done:
            folder = tmp_path_factory.mktemp(dtype)
            export, bundle = folder / "export", folder / "golden.safetensors"
            options = ["-o", str(export), "--dtype", dtype]
            assert CliRunner().invoke(main, ["onnx", str(CHECKPOINT), *options]).exit_code == 0
            outputs = ("--write-golden", bundle, "--json", folder / "r.json", "--report", folder / "r.html")
            code, output = run(CHECKPOINT, "--export", export, "--max-new-tokens", NEW_TOKENS, *outputs)
            assert code == 0, output
            assert {path.name for path in folder.iterdir()} == {"export", "golden.safetensors", "r.json", "r.html"}
            values, report = json.loads((folder / "r.json").read_text()), (folder / "r.html").read_text()
            done[dtype] = Verified(export, bundle, output, values, report)
        return done[dtype]

    return verify


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_trained_model_passes(verified: Callable[[str], Verified], dtype: str) -> None:
    done = verified(dtype)
    stages = {(stage["name"], stage["arithmetic"], stage["weights"]): stage for stage in done.values["stages"]}
    weights = "fp16" if dtype == "fp16" else AS_STORED  # the checkpoint is in bf16
    judged = {
        ("transformers", "fp32", AS_STORED),
        ("exported program", dtype, weights),
        ("ONNX Runtime", "fp32", weights),
    }
    references = {("reference", "fp32", AS_STORED), ("reference", dtype, weights), ("reference", "fp32", weights)}
    assert set(stages) == judged | references
    assert {key for key, stage in stages.items() if stage["passed"]} == judged
    for (_, arithmetic, _), stage in stages.items():
        errors, curve = stage["errors"], stage["layer_curve"]
        assert len(curve) == 5
        if arithmetic == "fp32":
            assert errors["max_abs"] <= 1e-4 and max(curve) < 1e-5
            assert stage["greedy"]["num_equal"] == 6 * NEW_TOKENS
        else:
            assert 0.01 < errors["max_abs"] < 4 and errors["top1"] > 0.95 and 1e-4 < curve[-1] < 0.05
            assert abs(errors["perplexity_diff"]) < 0.1
        assert stage["greedy"]["num_agreeing"] == 6


@pytest.mark.slow
def test_outputs_say_the_same(verified: Callable[[str], Verified]) -> None:
    done = verified("bf16")
    assert done.values["passed"] and done.values["inputs"]["source"] == "sample.txt"
    assert done.output.splitlines()[-1] == "passed"
    for stage in done.values["stages"]:
        assert stage["name"] in done.output and stage["name"] in done.report
    assert done.report.count("<svg") == 4 and '<div class="badge pass">Passed</div>' in done.report
    for outside in ("<script", "<link", "<img", " src=", "@import", "url(http"):
        assert outside not in done.report


# Broken stages


def swap_gate_and_up(tensors: dict[str, torch.Tensor]) -> None:
    for expert in range(16):
        names = [f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up")]
        tensors |= {names[0]: tensors[names[1]], names[1]: tensors[names[0]]}


def drop_an_expert(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    tensors[name] = torch.zeros_like(tensors[name])


def write_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the checkpoint with other tensors, in one file."""
    tensors = {name: value for shard in CHECKPOINT.glob("*.safetensors") for name, value in load_torch(shard).items()}
    change(tensors)
    save_torch(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


class WrongContext(OnnxRuntimeExecutor):
    """The context of every sequence that has something in the cache is one too short."""

    def execute(self, batch: Batch) -> HostLogits:
        decoding = batch.context_lens > np.diff(batch.cu_seqlens)
        return super().execute(replace(batch, context_lens=batch.context_lens - decoding.astype(np.int32)))


def other_rope(manifest: Manifest) -> Manifest:
    return replace(manifest, rope=Rope(tuple(value / 1.25 for value in manifest.rope.inv_freq), 1.0))


def compare_broken(
    golden: Golden,
    export: Path,
    arithmetic: str,
    checkpoint: Path = CHECKPOINT,
    manifest: Manifest | None = None,
    executor: type[OnnxRuntimeExecutor] = OnnxRuntimeExecutor,
) -> Comparison:
    """ONNX Runtime, held to what a stage of this arithmetic may lose."""
    found = manifest or load_manifest(export)
    stage = executor_stage(
        StageDescription("broken", Precision(AS_STORED, arithmetic), "judged"),
        lambda num_blocks: executor(
            export, found, open_checkpoint(checkpoint), OnnxRuntimeConfig(num_blocks), no_progress
        ),
        found.dims.vocab_size,
    )
    references = [stage for stage in golden.stages if stage.description.role != "judged"]
    return compare([*references, stage], golden.inputs, golden.gate, {}, no_progress)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
def test_gate_tells_broken_from_rounded(verified: Callable[[str], Verified], tmp_path: Path, arithmetic: str) -> None:
    done = verified("bf16")
    golden, export = read_golden(done.golden), done.export
    assert compare_broken(golden, export, arithmetic).passed
    for change in (swap_gate_and_up, drop_an_expert):
        folder = tmp_path / change.__name__
        folder.mkdir()
        broken = compare_broken(golden, export, arithmetic, checkpoint=write_changed(folder, change))
        assert not broken.passed, (change.__name__, broken.results[-1].errors)
    broken = compare_broken(golden, export, arithmetic, manifest=other_rope(load_manifest(export)))
    assert not broken.passed, broken.results[-1].errors
    broken = compare_broken(golden, export, arithmetic, executor=WrongContext)
    assert not broken.passed, broken.results[-1].errors
    told = " ".join(broken.results[-1].failures)
    assert "in decode" in told and "in prefill" not in told, told  # nothing is cached in prefill


# The golden bundle


@pytest.mark.slow
def test_bundle_gives_back_what_was_compared(verified: Callable[[str], Verified]) -> None:
    done = verified("fp16")
    golden = read_golden(done.golden)
    assert golden.origin.dtype == golden.weights == "fp16" and golden.gate == Gate()
    inputs = make_inputs(2048, 4096, NEW_TOKENS, Tokenizer(CHECKPOINT), None)
    assert golden.inputs.schedule == inputs.schedule
    for one, other in ((golden.inputs.sequences, inputs.sequences), (golden.inputs.prompts, inputs.prompts)):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    again = compare(golden.stages, golden.inputs, golden.gate, {}, no_progress)
    for result, stage in zip(again.results, done.values["stages"], strict=True):
        assert vars(result.errors) == pytest.approx(stage["errors"])
        assert result.curve == pytest.approx(stage["layer_curve"])
        assert (result.description.is_recorded, result.passed) == (True, stage["passed"])


def rewrite(bundle: Path, target: Path, change: Callable[[dict, dict], None]) -> None:
    """A copy of the bundle with other tensors or another header."""
    import safetensors

    tensors = load_file(bundle)
    with safetensors.safe_open(bundle, "np") as file:
        ((key, text),) = file.metadata().items()
    header = json.loads(text)
    change(tensors, header)
    save_file(tensors, target, metadata={key: json.dumps(header)})


TAMPERED: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "missing tensor": (lambda tensors, header: tensors.pop("stages.0.logits"), r"no tensor stages\.0\.logits"),
    "unknown tensor": (lambda tensors, header: tensors.update(x=np.zeros(1)), "unknown tensors x"),
    "other values": (lambda tensors, header: np.add.at(tensors["stages.1.logits"], (0, 0), 1), "changed"),
    "other format": (lambda tensors, header: header.update(format=2), "got format 2, expected 1"),
    "missing field": (lambda tensors, header: header.pop("gate"), "metadata fields"),
    "other schedule": (lambda tensors, header: header["schedule"].pop(), "schedule"),
    "other lengths": (lambda tensors, header: header["lengths"].append(3), "invalid metadata"),
    "unknown gate": (lambda tensors, header: header["gate"].update(slack=1), "invalid metadata"),
    "no truth": (lambda tensors, header: header["stages"].pop(0), "truth"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_bundle_is_refused(verified: Callable[[str], Verified], tmp_path: Path, name: str) -> None:
    change, message = TAMPERED[name]
    target = tmp_path / "golden.safetensors"
    rewrite(verified("bf16").golden, target, change)
    with pytest.raises(InputError, match=message):
        read_golden(target)


@pytest.mark.slow
def test_what_is_no_bundle_is_refused(verified: Callable[[str], Verified], tmp_path: Path) -> None:
    target = tmp_path / "golden.safetensors"
    target.write_bytes(verified("bf16").golden.read_bytes()[:100_000])
    for path in (tmp_path / "absent", target, next(CHECKPOINT.glob("*.safetensors"))):
        with pytest.raises(InputError, match="golden bundle"):
            read_golden(path)


# The command

WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "matplotlib"):
    sys.modules[name] = None
from qwen3moe_export.cli import main
main(prog_name="qwen3moe-export")
"""


@pytest.mark.slow
def test_golden_comparison_needs_no_torch(verified: Callable[[str], Verified], tmp_path: Path) -> None:
    done = verified("fp16")
    target = tmp_path / "r.json"
    args = ["verify", CHECKPOINT, "--export", done.export, "--golden", done.golden, "--json", target]
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stdout + process.stderr
    *_, recorded, live = json.loads(target.read_text())["stages"]
    assert (recorded["name"], recorded["is_recorded"], recorded["weights"]) == ("ONNX Runtime", True, "fp16")
    assert (live["name"], live["is_recorded"], live["weights"]) == ("ONNX Runtime", False, "fp16")
    assert live["passed"] and live["layer_curve"] is None
    assert live["errors"]["max_abs"] == pytest.approx(recorded["errors"]["max_abs"], abs=1e-5)


@pytest.mark.slow
def test_failed_verdict_is_exit_code_1(verified: Callable[[str], Verified], tmp_path: Path) -> None:
    done, checkpoint = verified("bf16"), write_changed(tmp_path, drop_an_expert)
    outputs = ("--json", tmp_path / "r.json", "--report", tmp_path / "r.html")
    code, output = run(checkpoint, "--export", done.export, "--golden", done.golden, *outputs)
    assert code == 1 and output.splitlines()[-1] == "failed"
    assert "ONNX Runtime: mean logit error" in output
    assert json.loads((tmp_path / "r.json").read_text())["passed"] is False
    assert '<div class="badge fail">Failed</div>' in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_bad_use_is_exit_code_2(verified: Callable[[str], Verified], tmp_path: Path) -> None:
    bf16, fp16 = verified("bf16"), verified("fp16")
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((CHECKPOINT / "config.json").read_text()) | {"rope_theta": 5e5}
    (other / "config.json").write_text(json.dumps(config))
    assert CliRunner().invoke(main, ["onnx", str(other), "-o", str(other / "export")]).exit_code == 0
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("no config.json", (tmp_path,)),
        ("no weights", (other,)),
        ("--golden needs --export", (CHECKPOINT, "--golden", bf16.golden)),
        ("cannot go with --golden", (CHECKPOINT, "--golden", bf16.golden, "--export", bf16.export, "--dtype", "bf16")),
        ("goes with --golden", (CHECKPOINT, "--executor", "onnxruntime")),
        ("no such folder", (CHECKPOINT, "--report", tmp_path / "none" / "r.html")),
        ("got fp16, expected bf16", (CHECKPOINT, "--export", bf16.export, "--dtype", "fp16")),
        ("an export in fp16, expected bf16", (CHECKPOINT, "--export", fp16.export, "--golden", bf16.golden)),
        ("an export of the architecture", (CHECKPOINT, "--export", other / "export")),
        ("an export of the architecture", (CHECKPOINT, "--export", other / "export", "--golden", bf16.golden)),
        ("no file", (CHECKPOINT, "--export", bf16.export, "--text", tmp_path / "none.txt")),
    ]
    for message, args in cases:
        code, output = run(*args)
        assert (code, message in " ".join(output.split())) == (2, True), (args, output)
        assert "Traceback" not in output
