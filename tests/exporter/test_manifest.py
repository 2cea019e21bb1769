"""The manifest: what is written is read back, and whatever else a file may hold is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwen3moe_engine.manifest import FILE_NAME, load_manifest, parse_manifest, to_json
from qwen3moe_export.artifact import read_eos_token_ids
from qwen3moe_plugins.errors import InputError


@pytest.fixture
def values(stages) -> dict[str, Any]:
    """A manifest as JSON reads it, to be spoiled."""
    return json.loads(to_json(stages.export("trained", "bf16")[1]))


def test_round_trip(stages):
    path, manifest = stages.export("trained", "bf16")
    assert load_manifest(path) == manifest
    assert (path / FILE_NAME).read_text() == to_json(manifest)


def test_what_a_runtime_needs(stages):
    _, manifest = stages.export("decoder_sparse_step", "bf16")
    assert (manifest.dims.num_layers, manifest.dims.num_kv_heads, manifest.dims.top_k) == (3, 2, 3)
    assert len(manifest.rope.inv_freq) == manifest.dims.head_dim // 2
    assert manifest.graph_of("bf16") == "model.onnx" and manifest.graph_of("fp32") == "model.fp32.onnx"
    assert [spec.name for spec in manifest.of_kind("expert_map")] == ["model.layers.1.mlp.expert_map"]
    aliases = {output.name: output.aliases for output in manifest.outputs}
    assert aliases == {"logits": None} | {f"kv_cache.{i}_out": f"kv_cache.{i}" for i in range(3)}
    (experts,) = [spec for spec in manifest.inputs if spec.name == "model.layers.1.mlp.experts.gate_up_proj"]
    names = list(experts.source_shapes())
    assert names[:3] == [
        "model.layers.1.mlp.experts.0.gate_proj.weight",
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "model.layers.1.mlp.experts.1.gate_proj.weight",
    ]
    assert len(names) == 20 and experts.shape == (10, 48, 48)
    with pytest.raises(InputError, match="expected fp16"):
        manifest.graph_of("fp16")


def _set(*path: str | int, to: Any) -> Callable[[dict], None]:
    def apply(values: dict) -> None:
        target: Any = values
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return apply


WRONG = {
    "another format": (_set("format", to=99), "format: got 99"),
    "no format": (lambda v: v.pop("format"), "format: got None"),
    "missing field": (lambda v: v.pop("dims"), "no dims"),
    "unknown field": (_set("color", to=1), "unknown color"),
    "missing dim": (lambda v: v["dims"].pop("top_k"), "dims: got no top_k"),
    "unknown dim": (_set("dims", "width", to=1), "dims: got unknown width"),
    "dims a list": (_set("dims", to=[]), "dims: got list"),
    "dim a string": (_set("dims", "vocab_size", to="2048"), "dims.vocab_size: got str, expected int"),
    "flag a number": (_set("takes_embeddings", to=0), "takes_embeddings: got int, expected bool"),
    "inputs an object": (_set("inputs", to={}), "inputs: got dict"),
    "an input a string": (_set("inputs", 3, to="x"), "inputs[3]: got str"),
    "shape of null": (_set("inputs", 0, "shape", 1, to=None), "inputs[0].shape[1]: got NoneType"),
    "unknown kind": (_set("inputs", 0, "kind", to="wight"), "kind: got wight, expected one of weight"),
    "unknown dtype": (_set("inputs", 0, "dtype", to="int4"), "dtype: got int4, expected one of bf16"),
    "frequencies of text": (_set("rope", "inv_freq", 0, to="1"), "rope.inv_freq[0]: got str, expected float"),
    "graph without hash": (lambda v: v["graphs"]["model.onnx"].pop("sha256"), "graphs.model.onnx: got no sha256"),
    "graph elsewhere": (lambda v: v["graphs"].update({"../m.onnx": v["graphs"]["model.onnx"]}), "got ../m.onnx"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_manifest(values, what):
    spoil, said = WRONG[what]
    parse_manifest(values, "manifest.json")
    spoil(values)
    with pytest.raises(InputError) as error:
        parse_manifest(values, "manifest.json")
    assert str(error.value).startswith("manifest.json") and said in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "\udcff"])
def test_no_manifest_at_all(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=FILE_NAME):
        load_manifest(tmp_path)


def test_graph_files_are_bound_by_hash(stages, tmp_path):
    path, manifest = stages.export("dense", "fp32")
    (tmp_path / FILE_NAME).write_text(to_json(manifest))
    with pytest.raises(InputError, match=r"model\.onnx: got no file"):
        load_manifest(tmp_path)
    content = bytearray((path / "model.onnx").read_bytes())
    (tmp_path / "model.onnx").write_bytes(content)
    load_manifest(tmp_path)
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: got sha256"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [2, 1]}, {"eos_token_id": 3}, (2, 1)),
        ({}, {"eos_token_id": 3}, (3,)),
        (None, {"eos_token_id": 0}, (0,)),
        (None, {}, ()),
    ],
)
def test_end_of_sequence_tokens(tmp_path, generation, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_eos_token_ids(tmp_path) == read_eos_token_ids(tmp_path / "config.json") == expected


@pytest.mark.parametrize("content", ['{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "[]", "{"])
def test_end_of_sequence_tokens_that_are_none(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        read_eos_token_ids(tmp_path)
