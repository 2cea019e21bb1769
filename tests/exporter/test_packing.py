"""Packing: the same bytes in the engine's layout, streamed, all or nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from measure import run_measured
from model_zoo import write_published_layout
from published_configs import QWEN3_30B_A3B
from safetensors.torch import load_file
from workload import paged_batches, run_batches

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.packing import pack
from qwen3moe_export.capture import TORCH_DTYPES
from qwen3moe_export.load import load_reference
from qwen3moe_plugins.errors import InputError


def in_order(plans, what):
    return iter(plans)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", ["trained", "attention_bias_one_kv_head", "mlp_only_layers", "inputs_embeds_tied"])
def test_packed_weights_are_their_sources(stages, tmp_path, name, dtype):
    """Each is the rows of its sources, one after the other, rounded once: bit for bit what torch makes of them."""
    _, manifest = stages.export(name, dtype)
    num_bytes = pack(manifest, open_checkpoint(stages.zoo.path(name)), tmp_path / "w.safetensors", in_order)
    assert (tmp_path / "w.safetensors").stat().st_size == num_bytes
    packed = load_file(tmp_path / "w.safetensors")
    files = stages.zoo.path(name).glob("*.safetensors")
    stored = dict(itertools.chain.from_iterable(load_file(file).items() for file in files))
    assert packed.keys() == {spec.name for spec in manifest.of_kind("weight")}
    for spec in manifest.of_kind("weight"):
        sources = [stored.pop(source) for source in spec.source_shapes()]
        expected = torch.cat(sources).to(TORCH_DTYPES[dtype]).reshape(spec.shape)
        assert packed[spec.name].dtype == expected.dtype and torch.equal(packed[spec.name], expected), spec.name
    assert stored.keys() == set(manifest.unused_sources)


def test_packed_experts_are_gate_above_up(stages, tmp_path):
    """By name, so that a wrong order in the manifest cannot hide."""
    _, manifest = stages.export("trained", "bf16")
    checkpoint = open_checkpoint(stages.zoo.path("trained"))
    pack(manifest, checkpoint, tmp_path / "w.safetensors", in_order)
    packed, model = load_file(tmp_path / "w.safetensors"), stages.reference("trained", "bf16").model
    experts, attention = model.layers[2].mlp.experts, model.layers[2].self_attn
    gate_up = packed["model.layers.2.mlp.experts.gate_up_proj"]
    assert torch.equal(gate_up[5], torch.cat([experts[5].gate_proj.weight, experts[5].up_proj.weight]))
    assert torch.equal(packed["model.layers.2.mlp.experts.down_proj"][9], experts[9].down_proj.weight)
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(packed["model.layers.2.self_attn.qkv_proj.weight"], qkv)


def test_packed_weights_serve_wherever_the_checkpoint_does(stages, tmp_path):
    name = "attention_bias_one_kv_head"
    _, manifest = stages.export(name, "fp32")
    pack(manifest, open_checkpoint(stages.zoo.path(name)), tmp_path / "w.safetensors", in_order)
    packed = open_checkpoint(tmp_path / "w.safetensors")
    reference = load_reference(stages.config(name), packed, "fp32")
    expected = stages.reference(name, "fp32").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in reference.state_dict().items())
    batches, num_blocks = paged_batches(stages.workload(name), 16)
    found = run_batches(stages.executor(name, "fp32", num_blocks, 16, weights=tmp_path / "w.safetensors"), batches)
    assert torch.equal(found, run_batches(stages.executor(name, "fp32", num_blocks, 16), batches))


def test_a_crash_leaves_nothing(stages, tmp_path):
    _, manifest = stages.export("trained", "bf16")
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"what was there")

    def crash_half_way(plans, what):
        yield from itertools.islice(plans, len(plans) // 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(manifest, open_checkpoint(stages.zoo.path("trained")), target, crash_half_way)
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"what was there"


def test_never_onto_the_checkpoint(stages, tmp_path):
    _, manifest = stages.export("trained", "bf16")
    target = tmp_path / "w.safetensors"
    pack(manifest, open_checkpoint(stages.zoo.path("trained")), target, in_order)
    before = target.read_bytes()
    for name in (target, tmp_path / "." / ".." / tmp_path.name / target.name):
        with pytest.raises(InputError, match="the checkpoint itself"):
            pack(manifest, open_checkpoint(target), name, in_order)
    with pytest.raises(InputError, match=r"expected one in '\.safetensors'"):
        pack(manifest, open_checkpoint(target), tmp_path / "w.bin", in_order)
    assert target.read_bytes() == before


@pytest.mark.slow
def test_memory_at_real_geometry(tmp_path, capsys):
    """Two layers of Qwen3-30B-A3B in published layout: less than twice the largest packed tensor and 1 GB."""
    values = QWEN3_30B_A3B | {"num_hidden_layers": 2, "vocab_size": 8192}
    write_published_layout(tmp_path / "checkpoint", values)
    export = run_measured("onnx", tmp_path / "checkpoint", "-o", tmp_path / "export")
    packing = run_measured("pack", tmp_path / "export", "--weights", tmp_path / "checkpoint")
    largest = 128 * 2 * 768 * 2048 * 2
    packed = open_checkpoint(tmp_path / "export" / "weights.safetensors")
    assert max(tensor.num_bytes for tensor in packed.tensors.values()) == largest
    with capsys.disabled():
        print(f"\n2 layers of 30B-A3B: onnx {export}; pack {packing}; largest packed tensor {largest / 1e9:.2f} GB")
    assert packing.peak_bytes < 2 * largest + 1e9
