"""A step's inputs on their way to the GPU, one behind the other, so that a single copy brings them.

Owns: where each lies in the block, on the host and on the device. Must not know TensorRT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, Stream
from qwen3moe_engine.tensorrt.double_buffer import DoubleBuffer
from qwen3moe_engine.weights import num_bytes_of

_ALIGNMENT = 256  # bytes, of each input, as cudaMalloc would give it


class StepInputs:
    """For batch inputs no larger than `specs`, whose shapes are the largest. `addresses` by name never change."""

    def __init__(self, specs: list[InputSpec], memory: DeviceMemory, stream: Stream):
        self._specs = specs
        self._offsets: dict[str, int] = {}
        self._capacities: dict[str, int] = {}
        end = 0
        for spec in sorted(specs, key=num_bytes_of):  # a small step leaves the end of the last, the largest, unused
            self._offsets[spec.name], self._capacities[spec.name] = end, num_bytes_of(spec)
            end += -(-num_bytes_of(spec) // _ALIGNMENT) * _ALIGNMENT
        self._host = DoubleBuffer(stream, end)  # the last step may be in flight, and its copy not have begun
        self._address = memory.allocate(end, "a step's inputs")
        self.addresses = {name: self._address + offset for name, offset in self._offsets.items()}

    def close(self) -> None:
        self._host.close()

    def empty_decode_step(self, num_seqs: int, max_blocks: int) -> dict[str, NDArray]:
        """Of `num_seqs` sequences without a token; there is padding in the place of theirs."""
        shapes = {"block_table": (num_seqs, max_blocks), "cu_seqlens": (num_seqs + 1,)}
        return {
            spec.name: np.zeros(shapes.get(spec.name, (num_seqs, *spec.static_shape[1:])), NUMPY_DTYPES[spec.dtype])
            for spec in self._specs
        }

    def send(self, arrays: dict[str, NDArray]) -> None:
        """Enqueues the copy of every input, by name."""
        ends = {name: offset + arrays[name].nbytes for name, offset in self._offsets.items()}
        num_bytes = max(ends.values())
        host = self._host.next_free(num_bytes)
        for name, offset in self._offsets.items():
            array = arrays[name]
            assert array.nbytes <= self._capacities[name], (name, array.shape)
            host[offset : ends[name]] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._host.send(host, self._address)
