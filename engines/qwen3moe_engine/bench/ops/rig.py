"""The kernel library on a GPU, with device memory for the operands of one measurement.

Owns: that memory, and calls that are ready to be made again. Must not know operators' shapes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, Stream
from qwen3moe_plugins.kernels import DTYPES, FillShape, FillTensors, KernelLibrary

ELEMENT_BYTES, FLOAT32_BYTES = 2, 4

Call = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """Calls of one operator at one shape, each with weights or keys of its own, and what one of them has to move and
    to multiply at least: bytes, and multiplications and additions."""

    calls: list[Call]
    num_bytes: float
    num_flops: float = 0.0

    def bound_us(self, bytes_per_second: float, flops_per_second: float) -> float:
        return 1e6 * max(self.num_bytes / bytes_per_second, self.num_flops / flops_per_second)


class Rig:
    """dtype: of activations and weights, bf16 or fp16. A context manager that frees what was allocated in it."""

    def __init__(self, kernels: KernelLibrary, stream: Stream, dtype: str, seed: int = 0):
        self.kernels, self.stream, self.dtype_name, self.dtype = kernels, stream, dtype, DTYPES[dtype]
        self.rng = np.random.default_rng(seed)
        self._memory, self._num_filled = DeviceMemory(), 0

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.synchronize()
        self._memory.close()

    def empty(self, num_bytes: int) -> int:
        return self._memory.allocate(num_bytes, "operands")

    def random(self, count: int, half_width: float = 1.0, mean: float = 0.0) -> int:
        """`count` elements, uniform around `mean`."""
        address = self.empty(count * ELEMENT_BYTES)
        self._num_filled += 1
        bounds = (self.dtype, mean - half_width, mean + half_width)
        shape = FillShape(count, count, count, 0, self._num_filled, *bounds)
        self.kernels.run("fill", shape, FillTensors(address), 0, 0, self.stream.handle)
        return address

    def upload(self, array: NDArray) -> int:
        """A copy of `array`; floating-point values as they are given."""
        content = np.ascontiguousarray(array)
        address = self.empty(content.nbytes)
        self.stream.to_device(address, content.ctypes.data, content.nbytes)
        self.stream.synchronize()
        return address

    def upload_rounded(self, array: NDArray[np.float32]) -> int:
        """A copy of `array` in the rig's dtype."""
        return self.upload(array.astype(NUMPY_DTYPES[self.dtype_name]))

    def bind(self, op: str, shape: ctypes.Structure, tensors: list[ctypes.Structure]) -> list[Call]:
        """A call for each of `tensors`, all on the same scratch memory, as in a plan."""
        size = self.kernels.workspace_size(op, shape)
        workspace = self.empty(size)

        def bound(operands: ctypes.Structure) -> Call:
            return lambda: self.kernels.run(op, shape, operands, workspace, size, self.stream.handle)

        return [bound(operands) for operands in tensors]
