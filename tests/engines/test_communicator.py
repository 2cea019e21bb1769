"""What goes wrong before any GPU is touched is said by name. Sums over GPUs are tests/plugins/test_collective.py."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from pathlib import Path

import pytest

from qwen3moe_engine.tensorrt.communicator import (
    MEASURED_ONE_SHOT_BYTES,
    SYSTEM_NCCL,
    CollectiveLibrary,
    CommunicatorConfig,
    find_nccl,
    one_shot_limit,
    skipped_collectives,
)
from qwen3moe_plugins.errors import InputError
from qwen3moe_plugins.kernels import (
    FP16,
    AllGatherShape,
    AllGatherTensors,
    AllReduceShape,
    AllReduceTensors,
    KernelError,
    KernelLibrary,
)
from qwen3moe_plugins.library import KERNELS

CALLS = {
    "all_reduce": (AllReduceShape(8, FP16), AllReduceTensors(256, 256)),
    "all_gather": (AllGatherShape(8, FP16, 2), AllGatherTensors(256, 256)),
}


@pytest.fixture
def kernels(built_library) -> Path:
    return built_library(KERNELS)


@pytest.fixture
def make_library(tmp_path):
    def make(source: str) -> str:
        (tmp_path / "fake.cpp").write_text(source)
        subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "fake.cpp", "-o", tmp_path / "fake.so"], check=True)
        return str(tmp_path / "fake.so")

    return make


def test_a_missing_nccl_is_named(kernels, tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/libnccl.so.2.*NCCL 2.14 or later; pip install nvidia-nccl"):
        CollectiveLibrary(kernels, f"{tmp_path}/libnccl.so.2")


def test_a_library_that_is_not_nccl_is_named(kernels, make_library):
    path = make_library('extern "C" int another() { return 0; }')
    with pytest.raises(InputError, match=rf"{path}: not an NCCL library: no ncclGetVersion"):
        CollectiveLibrary(kernels, path)


def test_an_old_nccl_is_refused(kernels, make_library):
    path = make_library('extern "C" int ncclGetVersion(int* version) { *version = 21300; return 0; }')
    with pytest.raises(InputError, match=rf"{path}: NCCL version: expected at least 21400, got 21300"):
        CollectiveLibrary(kernels, path)


def test_nccl_is_pips_if_installed(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("nvidia.nccl", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert find_nccl() == SYSTEM_NCCL
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / SYSTEM_NCCL).touch()
    assert find_nccl() == str(tmp_path / "lib" / SYSTEM_NCCL)


@pytest.mark.parametrize("op", CALLS)
def test_an_operator_without_a_group_fails_by_name(kernels, op):
    name = {"all_reduce": "AllReduce", "all_gather": "AllGather"}[op]
    with pytest.raises(KernelError, match=f"{name}: this process has no communicator"):
        KernelLibrary(kernels).run(op, *CALLS[op], 0, 0, 0)


@pytest.mark.parametrize("op", CALLS)
def test_a_builder_may_run_operators_without_a_group(kernels, op):
    library = KernelLibrary(kernels)
    with skipped_collectives(kernels):
        library.run(op, *CALLS[op], 0, 0, 0)
    with pytest.raises(KernelError, match="no communicator"):
        library.run(op, *CALLS[op], 0, 0, 0)


def test_a_null_pointer_is_refused(kernels):
    with pytest.raises(KernelError, match="AllReduce: expected x and out, not NULL"):
        KernelLibrary(kernels).run("all_reduce", AllReduceShape(8, FP16), AllReduceTensors(256, None), 0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((2, 2, 0, 0), "rank: got 2, expected 0 to 1"),
        ((-1, 2, 0, 0), "rank: got -1"),
        ((0, 9, 0, 64), "one_shot_bytes: got 64, expected 0 with more than 8 ranks"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        CommunicatorConfig(*fields)


def test_one_shot_sends_no_more_with_more_ranks():
    for world_size in range(2, 9):
        assert one_shot_limit(world_size) * (world_size - 1) <= MEASURED_ONE_SHOT_BYTES
    assert one_shot_limit(2) == MEASURED_ONE_SHOT_BYTES
    assert one_shot_limit(1) == one_shot_limit(9) == 0
