"""AllReduce and AllGather inside ONNX Runtime sessions: operators whose kernel is a Python function.

Owns: the binding of onnxruntime-extensions' Python operators to whatever group the calling thread serves. Must not know
how ranks reach each other.

Its extension module is loaded by itself: the package around it imports onnx where there is one, 3.7 s a process, and
hands results over as lists of numbers, ten times slower than arrays.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3moe_plugins.ops import ALL_GATHER, COLLECTIVES, OpDecl

PYTHON_OP_DOMAIN = "ai.onnx.contrib"  # where onnxruntime-extensions puts Python operators
_PACKAGE, _MODULE = "onnxruntime_extensions", "_extensions_pydll"


class Collective(Protocol):
    """The `size` ranks of a group, as one of them sees it. Every rank calls the same functions in the same order."""

    size: int

    def all_reduce(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of all ranks' x, of one shape; the same bits on each."""
        ...

    def all_gather(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """All ranks' x [N, C], rank after rank: [size * N, C]."""
        ...


@dataclass
class _Run:
    """A session's run on this thread: its group, and the first error of a collective."""

    group: Collective | None
    error: Exception | None = None


_current = threading.local()
_definitions: list[Any] = []  # the extension points to them as long as the process lives


@contextmanager
def serving(group: Collective | None) -> Iterator[None]:
    """For one run of a session by this thread, which reduces over `group`. Raises what a collective raised in it: the
    extension ends the process when an exception reaches it, so the run goes on to its end, with zeros."""
    run = _current.run = _Run(group)
    try:
        yield
    finally:
        if run.error is not None:  # rather than what the session says of the zeros
            raise run.error


def collective_name(decl: OpDecl) -> str:
    """Of the Python operator that stands behind a declared one."""
    return f"Qwen3MoE{decl.name}"


@functools.cache
def register_collectives() -> str:
    """Defines the operators, once in a process. Returns the library to register with a session's options."""
    package = importlib.util.find_spec(_PACKAGE)
    folders = package.submodule_search_locations if package is not None else None
    spec = importlib.machinery.PathFinder.find_spec(_MODULE, list(folders)) if folders else None
    if spec is None or spec.loader is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for number, decl in enumerate(COLLECTIVES):
        definition = module.PyCustomOpDef()
        definition.op_type, definition.obj_id, definition.attrs = collective_name(decl), number, {}
        definition.input_types = definition.output_types = [definition.dt_float]
        module.add_custom_op(definition)
        _definitions.append(definition)
    module.PyCustomOpDef.install_hooker(_run)
    return spec.origin


def _run(number: int, inputs: tuple[NDArray[np.float32], ...], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """What the extension calls for a node: its operator's number, shape and values of the output come back."""
    run: _Run = _current.run
    assert run.group is not None, "a graph for many ranks without a group"
    (x,), gathers = inputs, COLLECTIVES[number] is ALL_GATHER
    out = np.zeros((x.shape[0] * (run.group.size if gathers else 1), *x.shape[1:]), x.dtype)
    try:
        if run.error is None:
            out = run.group.all_gather(x) if gathers else run.group.all_reduce(x)
    except Exception as error:
        run.error = error
    return number, out.shape, out.reshape(-1)
