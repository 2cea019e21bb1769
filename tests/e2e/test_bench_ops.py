"""`bench ops` without a GPU: the shapes that kernels are asked for, and the bounds that times are held against.

Bounds are those of Qwen3-30B-A3B on an H200, worked out by hand: 4.3 TB/s, 790 TFLOP/s.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3moe_engine.bench.ops.cases import cases_of
from qwen3moe_engine.bench.ops.moe import MoECase, local_work, router_logits
from qwen3moe_engine.bench.ops.rig import Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.steps import Times
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_export.cli import main
from qwen3moe_export.cli.bench_op_row import HEADER, make_op_row
from qwen3moe_export.cli.bench_ops_command import GROUPS
from qwen3moe_export.cli.bench_table import Files, report

L2_BYTES = 60_000_000
SIZES = OpSizes(
    dtype="fp16",
    hidden_size=2048,
    intermediate_size=768,
    num_experts=128,
    num_local_experts=128,
    top_k=8,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    vocab_size=151936,
    products={"qkv": (2048, 5120), "output": (4096, 2048), "router": (2048, 128), "logits": (2048, 151936)},
)
BOUNDS_US = {
    "moe 1": 17.6,
    "moe 8192": 783,
    "decode 1x1024": 0.5,
    "decode 32x1024": 15.6,
    "decode 256x1024": 125,
    "decode 1x8192": 3.9,
    "prefill 2048": 43.5,
    "prefill 8192": 696,
    "qkv 1": 4.9,
    "qkv 8192": 217.5,
    "logits 1": 144.9,
    "add_rms_norm 8192": 31.2,
    "sample 256 greedy": 36.2,
}


class HostRig(Rig):
    """Makes no memory and no call: keeps what was asked for. Addresses are numbers, `uploaded` what lies there."""

    def __init__(self):
        super().__init__(kernels=None, stream=None, dtype="fp16")
        self.addresses, self.uploaded, self.asked, self.num_elements = itertools.count(256, 256), {}, [], 0

    def empty(self, num_bytes):
        return next(self.addresses)

    def random(self, count, half_width=1.0, mean=0.0):
        self.num_elements += count
        return next(self.addresses)

    def upload(self, array):
        address = next(self.addresses)
        self.uploaded[address] = array
        return address

    def bind(self, op, shape, tensors):
        self.asked.append((op, shape, tensors))
        return [lambda: None for _ in tensors]


def prepare(case, sizes=SIZES):
    rig = HostRig()
    return rig, case.prepare(rig, sizes, L2_BYTES)


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for group in cases_of(SIZES, None).values() for case in group}


@pytest.mark.parametrize("name", BOUNDS_US)
def test_the_bound(cases, name):
    _, work = prepare(cases[name])
    assert work.bound_us(4.3e12, 790e12) == pytest.approx(BOUNDS_US[name], rel=0.03, abs=0.05)


def test_calls_take_turns_until_the_cache_is_full_four_times(cases):
    for name in ("qkv 1", "moe 1", "moe 64", "decode 8x1024"):
        rig, work = prepare(cases[name])
        ((op, _, tensors),) = rig.asked
        turning = {"linear": "weight", "moe": "gate_up", "paged_attention": "kv_cache"}[op]
        copies = {getattr(each, turning) for each in tensors}
        assert len(copies) >= 2 and len(tensors) == len(work.calls) >= 8
        assert len(work.calls) * work.num_bytes >= 4 * L2_BYTES
        assert 2 * rig.num_elements >= 4 * L2_BYTES, "what all copies hold together"


def test_metadata_of_unequal_contexts(cases):
    rig, work = prepare(cases["decode 64x1-8191"])
    ((_, shape, tensors),) = rig.asked
    lens = rig.uploaded[tensors[0].context_lens]
    assert (lens.min(), lens.max(), len(lens), lens.sum()) == (1, 8191, 64, 64 * 4096)
    np.testing.assert_array_equal(rig.uploaded[tensors[0].positions].ravel(), lens - 1)
    assert shape.max_blocks * 32 >= 8191 and shape.num_blocks == 64 * shape.max_blocks
    assert work.num_bytes == prepare(cases["decode 64x4096"])[1].num_bytes


def test_metadata_of_a_late_chunk(cases):
    rig, work = prepare(cases["prefill 512 in 32768"])
    ((_, shape, tensors),) = rig.asked
    np.testing.assert_array_equal(rig.uploaded[tensors[0].positions].ravel(), np.arange(32768 - 512, 32768))
    assert (shape.num_tokens, shape.num_seqs) == (512, 1)
    assert work.num_flops == 4 * 32 * 128 * sum(range(32768 - 511, 32768 + 1))


def test_routing_has_the_skew_that_was_asked_for():
    skew, rig = RouterSkew(0.9, 8), HostRig()
    logits = router_logits(rig, 4000, SIZES, skew)
    chosen = np.argsort(-logits, axis=1)[:, :8]
    assert np.mean(chosen < 8) == pytest.approx(0.9, abs=0.03)
    assert local_work(logits, SIZES) == (32000, len(np.unique(chosen)))
    assert MoECase(4, skew).name == "moe 4 skew 0.9/8"


def test_a_rank_counts_its_own_experts():
    sizes = OpSizes(**vars(SIZES) | {"num_local_experts": 64})
    rig, work = prepare(MoECase(2048), sizes)
    ((_, shape, tensors),) = rig.asked
    assert (shape.num_experts, shape.num_local_experts) == (128, 64)
    np.testing.assert_array_equal(rig.uploaded[tensors[0].expert_map], [*range(64), *[-1] * 64])
    whole = prepare(MoECase(2048))[1]
    assert work.num_bytes == whole.num_bytes / 2 and work.num_flops == pytest.approx(whole.num_flops / 2, rel=0.03)


def test_sizes_are_those_of_the_export(export):
    sizes, dims = OpSizes.of(load_manifest(export)), load_manifest(export).dims
    assert (sizes.num_heads, sizes.num_kv_heads) == (dims.num_heads, dims.num_kv_heads)
    assert sizes.products["qkv"] == (dims.hidden_size, (dims.num_heads + 2 * dims.num_kv_heads) * dims.head_dim)
    assert sizes.products["output"] == (dims.num_heads * dims.head_dim, dims.hidden_size)
    assert sizes.products["logits"] == (dims.hidden_size, dims.vocab_size)
    assert (sizes.intermediate_size, sizes.num_local_experts) == (64, dims.num_experts)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ops", "moe,gemm"], "--ops: got gemm, expected of moe, decode"),
        (["--router-skew", "2/8"], "--router-skew: got '2/8'"),
        (["--peer", __file__], "test_bench_ops.py: got"),
    ],
)
def test_bad_requests_are_refused(export, options, says):
    result = CliRunner().invoke(main, ["bench", "ops", str(export), *options])
    assert result.exit_code == 2
    assert says in result.stderr


def test_rows_beside_bound_and_peer(tmp_path, capsys):
    work = Work([], num_bytes=4.3e6, num_flops=79e9)

    def measure(case):
        times = Times((0.1, 0.2, 0.4))
        return make_op_row(case, times, work, work.bound_us(4.3e12, 790e12), 300.0 if case == "moe 1" else None)

    files = Files(tmp_path / "rows.json", tmp_path / "rows.svg")
    report(["moe 1", "moe 2", "qkv 1"], measure, files, HEADER, "us", lambda row: row.name.split()[0])
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert table[2] == ["moe 1", "200.00", "360.00", "22", "395", "100.00", "50 %", "300.0", "1.50"]
    assert table[3][-2:] == ["", ""]
    first, *_ = json.loads(files.json.read_text())
    assert (first["name"], first["median"], first["peer"]) == ("moe 1", 200.0, 300.0)
    assert files.plot.read_text().count("<svg") == 1


def test_the_command_names_the_groups_there_are():
    assert tuple(cases_of(SIZES, None)) == GROUPS


def test_peers_name_rows(cases):
    peers = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "h200_ops.json"
    figures = json.loads(peers.read_text())
    assert set(figures) <= set(cases) and all(value > 0 for value in figures.values())
