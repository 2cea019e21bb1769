"""The TensorRT releases this project builds for, and what differs between them.

Owns: every difference, as data. Must not know graphs or plans.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3moe_plugins.errors import InputError, name_list
from qwen3moe_plugins.library import PLUGINS, PLUGINS_TRT8, TENSORRT_RTX_NAME, find_library, load_cublaslt


@dataclass(frozen=True)
class Flavour:
    """module: the Python package. major: of its version, None where any will do. plugins: the library it loads.

    plugin_layer: the layer type it gives our operators. max_opset: of ONNX graphs its parser takes. dtypes: of
    activations. strongly_typed: layers keep the graph's dtypes. aliased_outputs: kv_cache_out is an output that shares
    kv_cache's memory (else there is no such output and the plugin writes the input in place). sized_scratch: a
    context's scratch memory is given with its size. targets: compute capabilities it builds for without a GPU (none:
    for the one present). preload: a library whose name its parser looks up and its wheel lacks.
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
    sized_scratch: bool
    targets: tuple[str, ...] = ()
    preload: str | None = None


TRT10 = Flavour(
    name="10",
    module="tensorrt",
    major=10,
    plugins=PLUGINS,
    plugin_layer="PLUGIN_V3",
    max_opset=23,
    dtypes=("bf16", "fp16"),
    strongly_typed=True,
    aliased_outputs=True,
    sized_scratch=True,
)
TRT11 = replace(TRT10, name="11", major=11)
RTX = replace(
    TRT10,
    name="rtx",
    module="tensorrt_rtx",
    major=None,
    targets=("sm80", "sm86", "sm89", "sm120", "sm121"),
    preload=TENSORRT_RTX_NAME,
)
TRT8 = replace(
    TRT10,
    name="8",
    major=8,
    plugins=PLUGINS_TRT8,
    plugin_layer="PLUGIN_V2",
    max_opset=17,
    dtypes=("fp16",),
    strongly_typed=False,
    aliased_outputs=False,
    sized_scratch=False,
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

    def scratch_bytes(self, engine: Any) -> int:
        """Device memory that an execution context of `engine` needs beside its bindings."""
        return engine.device_memory_size_v2 if self.flavour.sized_scratch else engine.device_memory_size

    def new_context(self, engine: Any, scratch: int, num_bytes: int) -> Any:
        """An execution context on `num_bytes` of the caller's device memory at address `scratch`."""
        if not self.flavour.sized_scratch:
            context = engine.create_execution_context_without_device_memory()
            context.device_memory = scratch
            return context
        context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(scratch, num_bytes)
        return context

    def new_profiler(self) -> Any:
        """A TensorRT profiler that keeps `layers`, pairs of name and milliseconds."""

        interface: Any = self.trt.IProfiler

        class LayerTimes(interface):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers: list[tuple[str, float]] = []

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.layers.append((layer_name, ms))

        return LayerTimes()


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
    load_cublaslt()
    _register(trt, library)
    return LoadedTensorRT(flavour, trt, trt.__version__, _logger(trt), library)


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
def _logger(trt: Any) -> Any:
    """One for the process: TensorRT 8.6 keeps the first that it is given for as long as any runtime or builder lives,
    also where the object that gave it is gone."""
    return trt.Logger(trt.Logger.ERROR)


@functools.cache
def _register(trt: Any, library: Path) -> None:
    """Once a process: TensorRT refuses a library whose plugins it has."""
    if trt.get_plugin_registry().load_library(str(library)) is None:
        got = "a library that TensorRT cannot load"
        raise InputError(str(library), got=got, expected="our plugins", remedy="run `make plugins`")
