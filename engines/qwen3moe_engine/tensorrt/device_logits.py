"""Logits in device memory: drawn there by the sampling kernel, or brought to the host.

Owns: the parameters and tokens of a draw, on both sides. Must not know TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.logits import Draw
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, PinnedBuffer, Stream
from qwen3moe_plugins.kernels import KernelLibrary, SampleShape, SampleTensors

FLOAT_BYTES, TOKEN_BYTES = 4, 4
# A row's parameters, in the order of the kernel's arrays; the 64-bit ones first, so that all are aligned.
PARAMETERS = {
    "seed": np.uint64,
    "offset": np.uint64,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
}
ROW_BYTES = sum(np.dtype(dtype).itemsize for dtype in PARAMETERS.values())


class DeviceLogits:
    """Of the steps that write to `address`, device memory for [max_rows, vocab_size] fp32."""

    def __init__(self, max_rows: int, vocab_size: int, kernels: KernelLibrary, memory: DeviceMemory, stream: Stream):
        self._vocab_size, self._kernels, self._stream = vocab_size, kernels, stream
        self.address = memory.allocate(max_rows * vocab_size * FLOAT_BYTES, "logits")
        self._host_values = PinnedBuffer(max_rows * vocab_size * FLOAT_BYTES)
        self._parameters = memory.allocate(max_rows * ROW_BYTES, "sampling parameters")
        self._tokens = memory.allocate(max_rows * TOKEN_BYTES, "tokens")
        self._host = PinnedBuffer(max_rows * max(ROW_BYTES, TOKEN_BYTES))
        # few rows may want more scratch memory than many
        sizes = [kernels.workspace_size("sample", SampleShape(rows + 1, vocab_size)) for rows in range(max_rows)]
        self._workspace_bytes = max(sizes)
        self._workspace = memory.allocate(self._workspace_bytes, "sampling")

    def close(self) -> None:
        self._host_values.close()
        self._host.close()

    def of_step(self, num_rows: int) -> StepLogits:
        """The first rows, as the step that was enqueued last leaves them."""
        return StepLogits(self, num_rows)

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        """`Logits.draw`."""
        count = len(draws)
        if count:
            self._enqueue(draws)
            self._stream.to_host(self._host.address, self._tokens, count * TOKEN_BYTES)
        self._stream.synchronize()
        return self._host.bytes[: count * TOKEN_BYTES].view(np.int32).tolist()

    def fetch(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """`Logits.rows`."""
        row_bytes = self._vocab_size * FLOAT_BYTES
        for place, index in enumerate(indices):
            self._stream.to_host(
                self._host_values.address + place * row_bytes, self.address + index * row_bytes, row_bytes
            )
        self._stream.synchronize()
        values = self._host_values.bytes[: len(indices) * row_bytes].view(np.float32)
        return values.reshape(len(indices), self._vocab_size).copy()

    def _enqueue(self, draws: Sequence[Draw]) -> None:
        count, offset, addresses = len(draws), 0, {}
        for name, values in _columns(draws).items():
            self._host.bytes[offset : offset + values.nbytes] = values.view(np.uint8)
            addresses[name] = self._parameters + offset
            offset += values.nbytes
        self._stream.to_device(self._parameters, self._host.address, offset)
        tensors = SampleTensors(logits=self.address, token=self._tokens, **addresses)
        shape = SampleShape(count, self._vocab_size)
        self._kernels.run("sample", shape, tensors, self._workspace, self._workspace_bytes, self._stream.handle)


@dataclass(frozen=True)
class StepLogits:
    """A step's `Logits`: the first rows of the device's."""

    device: DeviceLogits
    num_rows: int

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        assert len(draws) <= self.num_rows, (len(draws), self.num_rows)
        return self.device.draw(draws)

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        return self.device.fetch(range(self.num_rows) if indices is None else indices)


def _columns(draws: Sequence[Draw]) -> dict[str, NDArray]:
    """Parameters by name, [len(draws)] each."""
    params = [given.params for given in draws]
    values = {name: [getattr(each, name) or 0 for each in params] for name in PARAMETERS if name != "offset"}
    values["offset"] = [given.offset for given in draws]  # a greedy row may have no seed
    return {name: np.array(values[name], dtype) for name, dtype in PARAMETERS.items()}
