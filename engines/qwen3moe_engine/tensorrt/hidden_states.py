"""What a stage before the last gives to the next, on its way to the host. Must not know TensorRT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, PinnedBuffer, Stream

OUTPUT = "hidden_states_out"


class HiddenStatesOutput:
    """Device memory at `address` for [max_tokens, hidden_size] in `dtype`."""

    def __init__(self, max_tokens: int, hidden_size: int, dtype: str, memory: DeviceMemory, stream: Stream):
        self.dtype, self._hidden_size, self._stream = NUMPY_DTYPES[dtype], hidden_size, stream
        num_bytes = max_tokens * hidden_size * self.dtype.itemsize
        self.address = memory.allocate(num_bytes, OUTPUT)
        self._host = PinnedBuffer(num_bytes)

    def close(self) -> None:
        self._host.close()

    def fetch(self, num_tokens: int) -> NDArray[np.float32]:
        """[num_tokens, hidden_size], once the stream has come so far."""
        num_bytes = num_tokens * self._hidden_size * self.dtype.itemsize
        self._stream.to_host(self._host.address, self.address, num_bytes)
        self._stream.synchronize()
        values = self._host.bytes[:num_bytes].view(self.dtype).astype(np.float32)
        return values.reshape(num_tokens, self._hidden_size)
