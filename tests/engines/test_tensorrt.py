"""The TensorRT executor on a GPU, with the trained model in fp16. Needs no torch: `--export` names an export that was
made elsewhere (`qwen3moe-export onnx tests/data/qwen3moe-tiny --dtype fp16`)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file, save_file
from schedule_check import live
from schedules import schedules

from qwen3moe_engine.batch import SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.logits import Draw, HostLogits
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.weights import no_progress
from qwen3moe_export.cli import main
from qwen3moe_plugins.library import PACKAGE_FOLDER

pytestmark = pytest.mark.gpu

CHECKPOINT = Path(__file__).resolve().parents[1] / "data" / "qwen3moe-tiny"
NUM_SCHEDULES, MAX_PROMPT, MAX_NEW_TOKENS = 100, 90, 60  # in blocks of 16 tokens
# Twice what plain torch loses in fp16 at the 99th percentile of this model's logits (make_greedy_golden.py).
TOLERANCE = 0.1766
SAMPLING = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=2**63),
    SamplingParams(temperature=1.5, min_p=0.1, seed=3),
    SamplingParams(temperature=0.6, top_p=0.95, seed=4),
]


@dataclass(frozen=True)
class Built:
    export: Path
    plan: Path


@pytest.fixture(scope="module")
def built(request, tmp_path_factory) -> Built:
    given_export = request.config.getoption("--export")
    assert given_export, "name an fp16 export of the trained model with --export"
    export = tmp_path_factory.mktemp("tensorrt") / "export"
    shutil.copytree(given_export, export)
    plan = export / "engine.plan"
    limits = ["--max-tokens", "512", "--max-seqs", "32", "--max-context", "512", "--block-size", "16"]
    result = run("engine", export, "-o", plan, *limits)
    assert result.exit_code == 0, result.output
    return Built(export, plan)


@pytest.fixture(scope="module", params=[False, True], ids=["no graphs", "CUDA graphs"])
def executor(request, built) -> Iterator:
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor

    config = TensorRTConfig(num_blocks=32, max_logits=512, cuda_graphs=request.param)
    manifest = load_manifest(built.export)
    with TensorRTExecutor(
        built.export, manifest, built.plan, open_checkpoint(CHECKPOINT), config, no_progress
    ) as opened:
        yield opened


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def generate(export: Path, plan: Path, weights: Path = CHECKPOINT, *more):
    options = ["--executor", "tensorrt", "--plan", plan, "--weights", weights, "--tokenizer", CHECKPOINT]
    return run("generate", export, *options, "--max-new-tokens", "8", *(more or ("--prompt", "Once")))


@pytest.mark.parametrize("overlap", [False, True], ids=["one at a time", "overlap"])
def test_tokens_do_not_depend_on_who_shares_pool_and_batch(executor, overlap, capsys):
    totals: Counter = Counter()

    # the same schedules each time: some must preempt, which few of them do
    @settings(
        max_examples=NUM_SCHEDULES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS, min_new_tokens=10, min_arrivals=5))
    def run(schedule):
        with capsys.disabled():
            totals.update(live(schedule, executor, TOLERANCE, overlap))

    run()
    with capsys.disabled():
        print(f"\n{dict(totals)}")
    assert totals["schedules"] == NUM_SCHEDULES
    assert min(totals[event] for event in ("preemptions", "prefix_hits")) > 0


@pytest.mark.parametrize("count", [1, 5, 24])
def test_the_device_draws_what_the_host_would(executor, count):
    rng = np.random.default_rng(count)
    steps = [SequenceStep(rng.integers(10, 2000, 3 + row, dtype=np.int32), 0, [row]) for row in range(min(count, 13))]
    batch = pack_batch(steps, executor.block_size)
    logits = executor.execute(batch)
    num_rows = len(batch.logits_indices)
    draws = [Draw(SAMPLING[row % len(SAMPLING)], row) for row in range(num_rows)]
    drawn = logits.draw(draws)
    assert drawn == HostLogits(logits.rows()).draw(draws)
    assert len(set(drawn)) > 1
    np.testing.assert_array_equal(logits.rows([num_rows - 1, 0]), logits.rows()[[num_rows - 1, 0]])


def test_text(built):
    graphs = generate(built.export, built.plan)
    plain = generate(built.export, built.plan, CHECKPOINT, "--no-cuda-graphs", "--prompt", "Once")
    assert (plain.exit_code, graphs.exit_code) == (0, 0), plain.output + graphs.output
    assert plain.stdout == graphs.stdout and len(plain.stdout.split()) >= 3


def expect_refusal(result, *words: str) -> None:
    """Exit code 2 and one line, which names what is wrong."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words), line


def test_a_changed_plan_is_refused(built, tmp_path):
    plan = Path(shutil.copy(built.plan, tmp_path))
    shutil.copy(f"{built.plan}.json", tmp_path)
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    expect_refusal(generate(built.export, plan), "engine.plan", "sha256", "build the plan again")
    plan.unlink()
    expect_refusal(generate(built.export, plan), "engine.plan", "no file")


def test_another_manifest_is_refused(built, tmp_path):
    export = tmp_path / "export"
    shutil.copytree(built.export, export)
    manifest = export / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"eos_token_ids": [', '"eos_token_ids": [\n  7,'))
    expect_refusal(generate(export, built.plan), "manifest.json", "built with")


def test_another_tensorrt_is_refused(built, tmp_path):
    plan = Path(shutil.copy(built.plan, tmp_path))
    sidecar = Path(f"{plan}.json")
    text = Path(f"{built.plan}.json").read_text()
    version = text.split('"tensorrt_version": "')[1].split('"')[0]
    sidecar.write_text(text.replace(version, version + ".99"))
    expect_refusal(generate(built.export, plan), "TensorRT", version + ".99")


@pytest.mark.parametrize("named", [{"targets": ["sm89"], "gpu": "NVIDIA L40"}, {"gpu": "NVIDIA H100"}])
def test_another_gpu_is_refused(built, tmp_path, named):
    """The plan's bytes are this GPU's own: that it is refused by its sidecar is what keeps TensorRT from trying."""
    plan = Path(shutil.copy(built.plan, tmp_path))
    sidecar = json.loads(Path(f"{built.plan}.json").read_text())
    Path(f"{plan}.json").write_text(json.dumps(sidecar | named))
    expect_refusal(generate(built.export, plan), f"got {sidecar['gpu']}", named["gpu"], "build the plan again")


def test_other_plugins_are_refused(built, tmp_path):
    """The sidecar names other ones: a library cannot be loaded twice into a process."""
    plan = Path(shutil.copy(built.plan, tmp_path))
    text = Path(f"{built.plan}.json").read_text()
    digest = text.split('"plugins_sha256": "')[1].split('"')[0]
    Path(f"{plan}.json").write_text(text.replace(digest, "0" * 64))
    expect_refusal(generate(built.export, plan), "libqwen3moe_plugins", "000000000000")
    expect_refusal(
        generate(built.export, built.plan, CHECKPOINT, "--plugins", tmp_path, "--prompt", "a"), str(tmp_path), "no such"
    )
    assert PACKAGE_FOLDER.is_dir()


def test_a_missing_or_misshapen_weight_is_refused(built, tmp_path):
    tensors = {key: value for file in CHECKPOINT.glob("*.safetensors") for key, value in load_file(file).items()}
    name = "model.layers.1.self_attn.o_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "missing.safetensors")
    expect_refusal(generate(built.export, built.plan, tmp_path / "missing.safetensors"), name)
    save_file(tensors | {name: np.ascontiguousarray(tensors[name][:-1])}, tmp_path / "short.safetensors")
    expect_refusal(generate(built.export, built.plan, tmp_path / "short.safetensors"), name)


def test_a_prompt_longer_than_the_profile_is_refused(built):
    ids = ",".join(["5"] * 600)
    expect_refusal(generate(built.export, built.plan, CHECKPOINT, "--prompt-ids", ids), "600 prompt", "512")


def test_a_pool_that_is_too_large_is_refused(built):
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
    from qwen3moe_plugins.errors import InputError

    config = TensorRTConfig(num_blocks=num_blocks_for(10**10, 16))
    with pytest.raises(InputError, match=r"kv_cache.*expected .* GB"):
        TensorRTExecutor(
            built.export, load_manifest(built.export), built.plan, open_checkpoint(CHECKPOINT), config, no_progress
        )
