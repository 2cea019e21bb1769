"""The operators as the plugin libraries know them are those of ops.py."""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from qwen3moe_plugins import ops
from qwen3moe_plugins.kernels import KernelLibrary
from qwen3moe_plugins.library import KERNELS, PLUGINS, PLUGINS_TRT8, LibraryNotFoundError, find_library


def declared_in_python() -> list[dict]:
    return json.loads(json.dumps([asdict(op) for op in ops.OPS]))


@pytest.mark.parametrize("name", [PLUGINS, PLUGINS_TRT8])
def test_cpp_declarations_are_those_of_ops_py(built_library, name):
    library = ctypes.CDLL(str(built_library(name)))
    library.qwen3moe_op_declarations.restype = ctypes.c_char_p
    assert json.loads(library.qwen3moe_op_declarations()) == declared_in_python()


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_shells_may_assume_what_they_assume(op):
    assert op.inputs[0].dtype == ops.ACTIVATION, "the shells take the activation type from input 0"
    assert op.outputs[0].dtype in (ops.ACTIVATION, ops.FLOAT32)
    aliased = [tensor.name in dict(op.aliases) for tensor in op.outputs]
    assert aliased == sorted(aliased), "the TensorRT 8.6 shell drops aliased outputs, which must come last"


def test_the_library_has_the_version_of_the_distribution(built_library):
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    version = re.search(r'^version = "(.*)"$', pyproject.read_text(), re.MULTILINE)
    assert version is not None
    assert KernelLibrary(built_library(KERNELS)).version == version[1]


def test_the_library_says_which_gpus_it_is_for(built_library):
    architectures = KernelLibrary(built_library(KERNELS)).architectures
    assert re.fullmatch(r"\d+a?(,\d+a?)*", architectures), architectures


def test_a_missing_library_is_named_with_its_remedy(tmp_path):
    with pytest.raises(LibraryNotFoundError, match=f"{tmp_path}/{KERNELS}.*make plugins"):
        find_library(KERNELS, tmp_path)
