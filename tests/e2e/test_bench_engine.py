"""`bench step`, `bench prefill` and `bench startup` over ONNX Runtime on the trained model."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qwen3moe_engine.bench.bound import decode_bytes
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_export.cli import main


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_steps_beside_bound_and_peer(export, checkpoint, tmp_path):
    peer, rows_file, plot = tmp_path / "peer.json", tmp_path / "rows.json", tmp_path / "steps.svg"
    peer.write_text(json.dumps({"2x20": 123.0, "5x7": 1.0}))
    options = ["--cases", "1x40,2x20", "--steps", "3", "--peer", peer, "--json", rows_file, "--plot", plot]
    result = bench("step", export, "--weights", checkpoint, "--bandwidth", "1e9", *options)
    assert result.exit_code == 0, result.output
    first, second = json.loads(rows_file.read_text())
    assert (first["name"], first["peer"], second["name"], second["peer"]) == ("1x40", None, "2x20", 123.0)
    assert 0 < second["median"] <= second["p90"]
    assert second["tokens_per_second"] == pytest.approx(2e3 / second["median"])
    assert second["bound"] == pytest.approx(decode_bytes(load_manifest(export), [20, 20]) / 1e9 * 1e3)
    assert len([line for line in result.stdout.splitlines() if line.startswith("| ")]) == 3
    assert "<svg" in plot.read_text()


def test_the_bound_is_what_has_to_be_read(export):
    """Of the trained model, by hand: bf16, experts 64 wide, a head of its own."""
    manifest = load_manifest(export)
    dims = manifest.dims
    hidden, width = dims.hidden_size, 64
    heads, kv_heads = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    attention = hidden * (heads + 2 * kv_heads) + heads * hidden + 2 * dims.head_dim
    layer = attention + 2 * hidden + dims.num_experts * hidden
    for batch_size, context in ((1, 0), (3, 100), (10**6, 7)):
        chosen = dims.num_experts * (1 - (1 - dims.top_k / dims.num_experts) ** batch_size)
        experts = chosen * 3 * hidden * width
        cached = batch_size * context * 2 * kv_heads
        head = hidden + dims.vocab_size * hidden
        embedded = min(batch_size, dims.vocab_size) * hidden
        elements = dims.num_layers * (layer + experts + cached) + head + embedded
        assert decode_bytes(manifest, [context] * batch_size) == pytest.approx(2 * elements)


def test_first_tokens(export, checkpoint):
    result = bench("prefill", export, "--weights", checkpoint, "--lengths", "5,300")
    assert result.exit_code == 0, result.output
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]] == ["5", "300"]


def test_the_start_is_the_sum_of_its_phases(export, checkpoint):
    result = bench("startup", export, "--weights", checkpoint, "--length", "9")
    assert result.exit_code == 0, result.output
    cells = [line.strip("| ").split(" | ") for line in result.stdout.splitlines()[2:]]
    seconds = {name: float(value) for name, value in cells}
    total = seconds.pop("from the start to the first token")
    del seconds["first token again"]
    assert total == pytest.approx(sum(seconds.values()), abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["step", "--cases", "1x"], "--cases: 1x: got '', expected a number of tokens or a range"),
        (["step", "--cases", "1x9-3"], "--cases: 1x9-3: got '9-3'"),
        (["step", "--cases", "0x5"], "--cases: got '0x5'"),
        (["prefill", "--lengths", "a"], "--lengths: got 'a', expected such as 128"),
        (["step", "--plot", "steps.bmp"], "--plot: got steps.bmp, expected a file .png"),
        (["step", "--json", "no/such/rows.json"], "got no such folder"),
        (["step", "--cases", "1x9000"], "9000 prompt"),
        (["startup", "--length", "9000"], "9000 prompt"),
    ],
)
def test_bad_requests_are_refused(export, checkpoint, arguments, says):
    command, *options = arguments
    result = bench(command, export, "--weights", checkpoint, *options)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
