"""Checkpoints in every published form load to the same weights; every way to be broken is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_zoo import BASE, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from qwen3moe_engine.checkpoint import INDEX_NAME, SINGLE_NAME, open_checkpoint
from qwen3moe_engine.weights import plan_weights, read_weight
from qwen3moe_export.config import load_config
from qwen3moe_export.layout import weight_specs
from qwen3moe_export.load import load_reference
from qwen3moe_plugins.errors import InputError

NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.7.up_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published"), BASE | {"attention_bias": True})


@pytest.fixture
def tensors(published) -> dict[str, Tensor]:
    return load_file(published / SINGLE_NAME)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A new folder with config.json alone."""
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    return tmp_path


def write_single(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / SINGLE_NAME)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Two shards and their index; returns the index's weight_map."""
    names = sorted(tensors)
    weight_map = {name: FIRST if index < len(names) // 2 else SECOND for index, name in enumerate(names)}
    for shard in (FIRST, SECOND):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def state(folder: Path) -> dict[str, Tensor]:
    return load_reference(load_config(folder), open_checkpoint(folder), "fp32").state_dict()


def test_every_tensor_arrives_bit_for_bit(published, tensors):
    loaded = state(published)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_file_by_itself(published, tensors):
    assert open_checkpoint(published / SINGLE_NAME).tensors.keys() == tensors.keys()


def test_shards_with_an_index(folder, tensors):
    write_shards(folder, tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in state(folder).items())


def test_fused_experts(folder, published, tensors):
    """transformers 5's state dict in memory, saved as it is."""
    fused = Qwen3MoeForCausalLM.from_pretrained(published, dtype=torch.float32).state_dict()
    assert fused["model.layers.0.mlp.experts.gate_up_proj"].shape == (10, 48, 48)
    write_single(folder, {name: value.contiguous() for name, value in fused.items()})
    assert all(torch.equal(value, tensors[name]) for name, value in state(folder).items())


def test_one_layer_fused_and_one_not(folder, tensors):
    prefix = "model.layers.0.mlp.experts."
    parts = {
        part: [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(10)] for part in ("gate", "up", "down")
    }
    tensors[f"{prefix}gate_up_proj"] = torch.cat([torch.stack(parts["gate"]), torch.stack(parts["up"])], dim=1)
    tensors[f"{prefix}down_proj"] = torch.stack(parts["down"])
    write_single(folder, tensors)
    assert torch.equal(state(folder)[f"{prefix}3.gate_proj.weight"], parts["gate"][3])


@pytest.mark.parametrize(
    ("stored", "dtype"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")]
)
def test_mixed_dtypes_are_converted_like_torch(folder, tensors, stored, dtype):
    tensors = {name: value if "norm" in name else value.to(stored) for name, value in tensors.items()}
    write_single(folder, tensors)
    for target, torch_dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        loaded = load_reference(load_config(folder), open_checkpoint(folder), target).state_dict()
        assert all(torch.equal(loaded[name], value.to(torch_dtype)) for name, value in tensors.items())


# Broken checkpoints: what is done to the tensors of a good one, and what the message says.


def _drop(tensors):
    del tensors[EXPERT], tensors[NORM]


def _add(tensors):
    tensors["model.layers.0.mlp.shared_expert.up_proj.weight"] = torch.zeros(2)
    tensors["model.extra"] = torch.zeros(2)


def _misshape(tensors):
    tensors[EXPERT] = torch.zeros(48, 24)


def _as_integers(tensors):
    tensors[EXPERT] = tensors[EXPERT].to(torch.int8)
    tensors[NORM] = tensors[NORM].to(torch.float64)


def _as_fp8(tensors):
    tensors[EXPERT] = tensors[EXPERT].to(torch.float8_e4m3fn)
    tensors[f"{EXPERT}_scale_inv"] = torch.ones(1)


def _both_forms(tensors):
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(10, 48, 24)


CONTENT = {
    "missing": (_drop, f"no tensor {EXPERT}, {NORM}"),
    "extra": (_add, "nothing takes: model.extra, model.layers.0.mlp.shared_expert.up_proj.weight"),
    "misshapen": (_misshape, f"{EXPERT} [48, 24] instead of [24, 48]"),
    "wrong dtype": (_as_integers, f"another dtype: {EXPERT} I8, {NORM} F64"),
    "fp8": (_as_fp8, f"{EXPERT}_scale_inv"),
    "fused and not": (_both_forms, "model.layers.1.mlp.experts.0.down_proj.weight"),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("what", CONTENT)
def test_wrong_content(folder, tensors, what, sharded):
    spoil, said = CONTENT[what]
    spoil(tensors)
    (write_shards if sharded else write_single)(folder, tensors)
    assert_refused(folder, said)


def _truncate(folder: Path) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-5])


def _truncate_header(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:100])


def _lfs_pointer(folder: Path) -> None:
    (folder / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5000\n")


def _empty(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"")


def _missing_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def _duplicate(folder: Path) -> None:
    second = load_file(folder / SECOND)
    name, value = next(iter(load_file(folder / FIRST).items()))
    save_file(second | {name: value}, folder / SECOND)


def _swap(folder: Path) -> None:
    first, second = load_file(folder / FIRST), load_file(folder / SECOND)
    second[NORM], moved = torch.zeros(48), second.pop(NORM)
    save_file(first | {NORM: moved}, folder / FIRST)
    second.pop(NORM)
    save_file(second, folder / SECOND)


def _edit_index(edit: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
        write_index(folder, edit(weight_map))

    return apply


FILES = {
    "truncated": (_truncate, SECOND),
    "truncated in the header": (_truncate_header, FIRST),
    "a Git LFS pointer": (_lfs_pointer, FIRST),
    "empty": (_empty, SECOND),
    "missing shard": (_missing_shard, f"no {SECOND}"),
    "duplicate": (_duplicate, "tensors in two shards: lm_head.weight"),
    "in another shard": (_swap, f"another shard than the index says: {NORM} in {FIRST}"),
    "not in the index": (_edit_index(lambda m: {k: v for k, v in m.items() if k != NORM}), f"does not list: {NORM}"),
    "only in the index": (_edit_index(lambda m: m | {"model.gone": FIRST}), "of the index in no shard: model.gone"),
    "index without a map": (lambda folder: (folder / INDEX_NAME).write_text("{}"), "weight_map"),
    "index no JSON": (lambda folder: (folder / INDEX_NAME).write_text("{"), "JSON"),
    "index of numbers": (_edit_index(lambda m: m | {NORM: 3}), "other than file names"),
    "index that leaves the folder": (_edit_index(lambda m: m | {NORM: "../x.safetensors"}), "other than file names"),
    "index a list": (_edit_index(lambda m: list(m)), "weight_map"),
}


@pytest.mark.parametrize("what", FILES)
def test_wrong_files(folder, tensors, what):
    spoil, said = FILES[what]
    write_shards(folder, tensors)
    spoil(folder)
    assert_refused(folder, said)


def test_a_name_twice_in_one_header(folder):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"{NORM}":{entry},"{NORM}":{entry}}}'.encode()
    (folder / SINGLE_NAME).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert_refused(folder, NORM)


def test_a_file_cut_after_it_was_opened(published, folder, tensors):
    """The bytes are read later than the header: what is short then is named too."""
    write_single(folder, tensors)
    plans = plan_weights(weight_specs(load_config(folder), "fp32"), open_checkpoint(folder))
    (folder / SINGLE_NAME).write_bytes((folder / SINGLE_NAME).read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"got .* bytes of "):
        for plan in plans:
            read_weight(plan, "fp32")


def test_overflow_of_fp16(folder, tensors):
    tensors[EXPERT][3, 4] = 70000.0
    write_single(folder, tensors)
    with pytest.raises(InputError, match=f"{EXPERT}: got values up to 7e[+]04, expected at most 65504"):
        load_reference(load_config(folder), open_checkpoint(folder), "fp16")
    load_reference(load_config(folder), open_checkpoint(folder), "bf16")


def test_no_weights(folder, tmp_path):
    assert_refused(folder, "no weights")
    with pytest.raises(InputError, match="no such path"):
        open_checkpoint(tmp_path / "nowhere")


def assert_refused(folder: Path, said: str) -> None:
    with pytest.raises(InputError) as error:
        plan_weights(weight_specs(load_config(folder), "fp32"), open_checkpoint(folder))
    message = str(error.value)
    assert message.startswith(str(folder)) and said in message and "\n" not in message
    assert ": got " in message and ", expected " in message
