"""Logits in device memory: drawn there by the sampling kernel, or brought to the host.

Owns: the parameters and tokens of a draw, on both sides, and the way of tokens into the next step. Must not know
TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Carried
from qwen3moe_engine.draw_columns import ROW_BYTES, DrawColumns, columns_of
from qwen3moe_engine.logits import Draw
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, Event, PinnedBuffer, Stream
from qwen3moe_engine.tensorrt.double_buffer import DoubleBuffer
from qwen3moe_plugins.kernels import KernelLibrary, SampleShape, SampleTensors

FLOAT_BYTES, TOKEN_BYTES = 4, 4


class DeviceLogits:
    """Of the steps that write to `address`, device memory for [max_rows, vocab_size] fp32."""

    def __init__(self, max_rows: int, vocab_size: int, kernels: KernelLibrary, memory: DeviceMemory, stream: Stream):
        self._vocab_size, self._kernels, self._stream = vocab_size, kernels, stream
        self.address = memory.allocate(max_rows * vocab_size * FLOAT_BYTES, "logits")
        self._host_values = PinnedBuffer(max_rows * vocab_size * FLOAT_BYTES)
        self._parameters = memory.allocate(max_rows * ROW_BYTES, "sampling parameters")
        self._tokens = memory.allocate(max_rows * TOKEN_BYTES, "tokens")
        self._host_parameters = DoubleBuffer(stream, max_rows * ROW_BYTES)
        self._drawn = [DrawnTokens(PinnedBuffer(max_rows * TOKEN_BYTES), Event()) for _ in range(2)]
        self._addresses: dict[str, int] = {}
        # few rows may want more scratch memory than many
        sizes = [kernels.workspace_size("sample", SampleShape(rows + 1, vocab_size)) for rows in range(max_rows)]
        self._workspace_bytes = max(sizes)
        self._workspace = memory.allocate(self._workspace_bytes, "sampling")

    def close(self) -> None:
        self._host_values.close()
        self._host_parameters.close()
        for drawn in self._drawn:
            drawn.close()

    def of_step(self, num_rows: int) -> StepLogits:
        """The first rows, as the step that was enqueued last leaves them."""
        return StepLogits(self, num_rows)

    def send(self, draws: DrawColumns) -> None:
        """Enqueues the copy of a draw's parameters."""
        count = len(draws["offset"])
        if not count:
            return
        host, offset = self._host_parameters.next_free(count * ROW_BYTES), 0
        for name, values in draws.items():
            host[offset : offset + values.nbytes] = values.view(np.uint8)
            self._addresses[name] = self._parameters + offset
            offset += values.nbytes
        self._host_parameters.send(host, self._parameters)

    def start_draw(self, count: int) -> DrawnTokens:
        """Enqueues the draw of `count` tokens by what was sent last. Good until the draw after the next."""
        self._drawn.reverse()
        drawn = self._drawn[0]
        if count:
            tensors = SampleTensors(logits=self.address, token=self._tokens, **self._addresses)
            shape = SampleShape(count, self._vocab_size)
            self._kernels.run("sample", shape, tensors, self._workspace, self._workspace_bytes, self._stream.handle)
            self._stream.to_host(drawn.host.address, self._tokens, count * TOKEN_BYTES)
        drawn.count = count
        drawn.arrived.record(self._stream)
        return drawn

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        """`Logits.draw`."""
        self.send(columns_of(draws))
        return self.start_draw(len(draws)).tokens()

    def carry(self, carried: Sequence[Carried], target: int) -> None:
        """Enqueues the copy of tokens that were drawn last to their places in the token ids at `target`. Both steps
        have sequences in order of service, so there are few gaps between them, and a copy for each."""
        start = 0
        for end in range(1, len(carried) + 1):
            place, row = carried[start]
            if end == len(carried) or carried[end] != (place + end - start, row + end - start):
                source = self._tokens + row * TOKEN_BYTES
                self._stream.on_device(target + place * TOKEN_BYTES, source, (end - start) * TOKEN_BYTES)
                start = end

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


@dataclass
class DrawnTokens:
    """`Drawn`: the first `count` tokens of `host`, once they have arrived."""

    host: PinnedBuffer
    arrived: Event
    count: int = 0

    def tokens(self) -> list[int]:
        self.arrived.wait()
        return self.host.bytes[: self.count * TOKEN_BYTES].view(np.int32).tolist()

    def close(self) -> None:
        self.host.close()
        self.arrived.close()


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
