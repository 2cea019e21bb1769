"""CUDA memory, streams and graphs through cuda-bindings.

Owns: error checking of CUDA calls and the lifetime of what they allocate. Must not know TensorRT.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from qwen3moe_plugins.errors import InputError


class CudaError(RuntimeError):
    """A CUDA call failed."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The results of a CUDA runtime call without its error code. Raises CudaError, naming call and code."""
    error, *results = function(*arguments)
    if error != cudart.cudaError_t.cudaSuccess:
        raise CudaError(f"{function.__name__}: {error.name} ({int(error)})")
    return results[0] if len(results) == 1 else results


@dataclass(frozen=True)
class Device:
    """The GPU in use. compute_capability: such as sm90. total_memory: bytes."""

    name: str
    compute_capability: str
    total_memory: int


def use_device(ordinal: int, remedy: str = "use --executor onnxruntime") -> Device:
    """Makes it this thread's. Raises InputError if there is no such GPU, with `remedy`, or if it is full."""
    try:
        call(cudart.cudaSetDevice, ordinal)
        properties = call(cudart.cudaGetDeviceProperties, ordinal)
    except (CudaError, RuntimeError) as error:
        expected = "a GPU and its driver"
        if cudart.cudaError_t.cudaErrorMemoryAllocation.name in str(error):
            expected, remedy = "some 0.5 GB of its memory free", "end what fills it, or use another GPU"
        raise InputError(f"CUDA device {ordinal}", got=str(error), expected=expected, remedy=remedy) from None
    return Device(properties.name.decode(), f"sm{properties.major}{properties.minor}", properties.totalGlobalMem)


def device_count() -> int:
    """GPUs that this process sees; 0 without a driver."""
    try:
        return int(call(cudart.cudaGetDeviceCount))
    except (CudaError, RuntimeError):
        return 0


def driver_version() -> str:
    """The CUDA version that the driver supports, such as 13000."""
    return str(call(cudart.cudaDriverGetVersion))


def free_memory() -> int:
    """Bytes."""
    return call(cudart.cudaMemGetInfo)[0]


class DeviceMemory:
    """Every device allocation of an executor; `close` frees them all. Addresses are integers."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self.num_bytes = 0

    def allocate(self, num_bytes: int, what: str) -> int:
        """Address of `num_bytes` of device memory, 256-byte aligned. Raises InputError if there are not as many."""
        size = max(num_bytes, 256)
        try:
            address = int(call(cudart.cudaMalloc, size))
        except CudaError:
            raise InputError(
                what,
                got=f"{free_memory() / 1e9:.2f} GB of free GPU memory",
                expected=f"{size / 1e9:.2f} GB beside {self.num_bytes / 1e9:.2f} GB in use",
                remedy="lower the KV cache or the plan's limits, or use more GPUs",
            ) from None
        self._addresses.append(address)
        self.num_bytes += size
        return address

    def close(self) -> None:
        for address in self._addresses:
            call(cudart.cudaFree, address)
        self._addresses.clear()


class PinnedBuffer:
    """Page-locked host memory as a numpy array of bytes."""

    def __init__(self, num_bytes: int):
        self.address = int(call(cudart.cudaHostAlloc, num_bytes, cudart.cudaHostAllocDefault))
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(
            ctypes.cast(self.address, ctypes.POINTER(ctypes.c_uint8)), shape=(num_bytes,)
        )

    def close(self) -> None:
        call(cudart.cudaFreeHost, self.address)


class Stream:
    """A CUDA stream and the copies on it."""

    def __init__(self) -> None:
        self._stream = call(cudart.cudaStreamCreate)
        self.handle = int(self._stream)

    def close(self) -> None:
        call(cudart.cudaStreamDestroy, self._stream)

    def synchronize(self) -> None:
        call(cudart.cudaStreamSynchronize, self._stream)

    def to_device(self, target: int, source: int, num_bytes: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(cudart.cudaMemcpyAsync, target, source, num_bytes, kind, self._stream)

    def on_device(self, target: int, source: int, num_bytes: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(cudart.cudaMemcpyAsync, target, source, num_bytes, kind, self._stream)

    def to_host(self, target: int, source: int, num_bytes: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(cudart.cudaMemcpyAsync, target, source, num_bytes, kind, self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """A graph of what `enqueue` puts on this stream."""
        call(cudart.cudaStreamBeginCapture, self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        finally:
            graph = call(cudart.cudaStreamEndCapture, self._stream)
        executable = call(cudart.cudaGraphInstantiate, graph, 0)
        call(cudart.cudaGraphDestroy, graph)
        return Graph(executable, self._stream)


@dataclass(frozen=True)
class Graph:
    """An instantiated CUDA graph."""

    executable: Any
    stream: Any

    def launch(self) -> None:
        call(cudart.cudaGraphLaunch, self.executable, self.stream)

    def close(self) -> None:
        call(cudart.cudaGraphExecDestroy, self.executable)


class Event:
    """A point in a stream. timed: its time can be asked for, which makes it dearer."""

    def __init__(self, timed: bool = False) -> None:
        self._event = call(cudart.cudaEventCreateWithFlags, 0 if timed else cudart.cudaEventDisableTiming)

    def close(self) -> None:
        call(cudart.cudaEventDestroy, self._event)

    def record(self, stream: Stream) -> None:
        """Puts it behind everything enqueued so far."""
        call(cudart.cudaEventRecord, self._event, stream.handle)

    def wait(self) -> None:
        """Until the stream has come to where it was recorded last; not at all if it never was."""
        call(cudart.cudaEventSynchronize, self._event)

    def milliseconds_since(self, earlier: Event) -> float:
        """Both are timed, and have been waited for."""
        return call(cudart.cudaEventElapsedTime, earlier._event, self._event)
