"""How long a call takes on the GPU.

Owns: caches and graphs. A CUDA graph holds calls on weights or keys that are each used once, together four times the
L2, so that every call finds its own in memory; activations, which a step has in L2, stay there. The figure is the
replay's time over the number of calls: a kernel's start overlaps the end of the one ahead, as it does in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cuda.bindings import runtime as cudart

from qwen3moe_engine.bench.ops.cases import OpCase
from qwen3moe_engine.bench.ops.rig import Call, Rig, Work
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.bench.steps import Times
from qwen3moe_engine.tensorrt.cuda import Event, Stream, call, use_device
from qwen3moe_engine.tensorrt.open_kernels import open_kernels
from qwen3moe_plugins.library import KERNELS, find_library, load_cublaslt


def l2_bytes() -> int:
    """Of the current device."""
    device = call(cudart.cudaGetDevice)
    return int(call(cudart.cudaDeviceGetAttribute, cudart.cudaDeviceAttr.cudaDevAttrL2CacheSize, device))


class OpClock:
    """Times cases on the current GPU. A context manager. Raises InputError without a GPU or kernels for it."""

    def __init__(self, sizes: OpSizes, plugins: Path | None, repeats: int):
        self.device = use_device(0, "run it where a GPU is")
        load_cublaslt()
        self._kernels = open_kernels(find_library(KERNELS, plugins), self.device)
        self._sizes, self._repeats, self._stream, self._l2_bytes = sizes, repeats, Stream(), l2_bytes()

    def __enter__(self) -> OpClock:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def time(self, case: OpCase) -> tuple[Times, Work]:
        """Milliseconds of a call, and what it does."""
        with Rig(self._kernels, self._stream, self._sizes.dtype) as rig:
            work = case.prepare(rig, self._sizes, self._l2_bytes)
            return time_calls(self._stream, work.calls, self._repeats), work


def time_calls(stream: Stream, calls: Sequence[Call], repeats: int) -> Times:
    """Of one call, in each of `repeats` replays; milliseconds."""
    stream.synchronize()  # weights are read early: they must be there
    for each in calls[:2]:
        each()  # cuBLASLt prepares a shape at its first call, which must not be captured
    stream.synchronize()

    def enqueue() -> None:
        for each in calls:
            each()

    graph = stream.capture(enqueue)
    graph.launch()
    start, end = Event(timed=True), Event(timed=True)
    times = []
    for _ in range(repeats):
        start.record(stream)
        graph.launch()
        end.record(stream)
        end.wait()
        times.append(end.milliseconds_since(start) / len(calls))
    for resource in (graph, start, end):
        resource.close()
    return Times(tuple(times))
