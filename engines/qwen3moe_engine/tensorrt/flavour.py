"""The TensorRT releases this project builds for, and what differs between them.

Owns: every difference, as data. Must not know graphs or plans.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3moe_plugins.errors import InputError, name_list
from qwen3moe_plugins.library import PLUGINS, PLUGINS_TRT8, TENSORRT_RTX_NAME, find_library


@dataclass(frozen=True)
class Flavour:
    """module: the Python package. major: of its version, None where any will do. plugins: the library it loads.

    max_opset: of ONNX graphs its parser takes. dtypes: of activations. strongly_typed: layers keep the graph's dtypes.
    aliased_outputs: kv_cache_out is an output that shares kv_cache's memory (else the plugin has no such output and
    writes the input in place). targets: compute capabilities it builds for without a GPU (none: for the one present).
    preload: a library whose name its parser looks up and its wheel lacks.
    """

    name: str
    module: str
    major: int | None
    plugins: str
    plugin_layer: str
    max_opset: int
    dtypes: tuple[str, ...]
    strongly_typed: bool
    aliased_outputs: bool
    targets: tuple[str, ...] = ()
    preload: str | None = None


RTX = Flavour(
    "rtx", "tensorrt_rtx", None, PLUGINS, "PLUGIN_V3", 23, ("bf16", "fp16"), strongly_typed=True, aliased_outputs=True,
    targets=("sm80", "sm86", "sm89", "sm120", "sm121"), preload=TENSORRT_RTX_NAME,
)  # fmt: skip
TRT8 = Flavour(
    "8", "tensorrt", 8, PLUGINS_TRT8, "PLUGIN_V2", 17, ("fp16",), strongly_typed=False, aliased_outputs=False
)
TRT10 = Flavour(
    "10", "tensorrt", 10, PLUGINS, "PLUGIN_V3", 23, ("bf16", "fp16"), strongly_typed=True, aliased_outputs=True
)
TRT11 = Flavour(
    "11", "tensorrt", 11, PLUGINS, "PLUGIN_V3", 23, ("bf16", "fp16"), strongly_typed=True, aliased_outputs=True
)
FLAVOURS = {flavour.name: flavour for flavour in (RTX, TRT8, TRT10, TRT11)}


@dataclass(frozen=True)
class LoadedTensorRT:
    """A TensorRT with our plugins registered. trt: the Python module. logger: TensorRT wants one for the process."""

    flavour: Flavour
    trt: Any
    version: str
    logger: Any
    plugin_library: Path


def load_tensorrt(name: str, plugin_folder: Path | None = None) -> LoadedTensorRT:
    """Imports the flavour `name` (`auto`: the installed one) and registers the plugins. Raises InputError."""
    flavour = _installed() if name == "auto" else FLAVOURS[name]
    if importlib.util.find_spec(flavour.module) is None:
        raise InputError(
            "--tensorrt", got=f"no package {flavour.module}", expected="it installed", remedy="pip install it"
        )
    trt = importlib.import_module(flavour.module)
    if flavour.major is not None and int(trt.__version__.split(".")[0]) != flavour.major:
        raise InputError(
            "--tensorrt",
            got=f"{flavour.module} {trt.__version__}",
            expected=f"version {flavour.major}",
            remedy="install that version or choose another",
        )
    if flavour.preload is not None:
        ctypes.CDLL(str(find_library(flavour.preload, plugin_folder)))
    library = find_library(flavour.plugins, plugin_folder)
    _register(trt, library)
    return LoadedTensorRT(flavour, trt, trt.__version__, trt.Logger(trt.Logger.ERROR), library)


def _installed() -> Flavour:
    if importlib.util.find_spec("tensorrt") is not None:
        major = importlib.import_module("tensorrt").__version__.split(".")[0]
        if major in FLAVOURS:
            return FLAVOURS[major]
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return RTX
    raise InputError(
        "--tensorrt auto",
        got="no TensorRT",
        expected=f"one of {name_list(FLAVOURS)}",
        remedy="pip install tensorrt or tensorrt-rtx",
    )


@functools.cache
def _register(trt: Any, library: Path) -> None:
    """Once a process: TensorRT refuses a library whose plugins it has."""
    if trt.get_plugin_registry().load_library(str(library)) is None:
        got = "a library that TensorRT cannot load"
        raise InputError(str(library), got=got, expected="our plugins", remedy="run `make plugins`")
