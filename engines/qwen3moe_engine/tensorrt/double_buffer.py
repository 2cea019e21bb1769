"""Two pinned buffers, used in turn, so that one is filled while the other is on its way to the device.

Owns: when a buffer is free again. Must not know what is sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.tensorrt.cuda import Event, PinnedBuffer, Stream


class DoubleBuffer:
    """Of `num_bytes` each, for copies on `stream`."""

    def __init__(self, stream: Stream, num_bytes: int):
        self._stream, self.num_bytes = stream, num_bytes
        self._buffers = [PinnedBuffer(num_bytes) for _ in range(2)]
        self._sent = [Event() for _ in range(2)]
        self._turn = 0

    def __enter__(self) -> DoubleBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.synchronize()
        self.close()

    def close(self) -> None:
        """The stream must have come to an end."""
        for buffer, sent in zip(self._buffers, self._sent, strict=True):
            buffer.close()
            sent.close()

    def next_free(self, num_bytes: int) -> NDArray[np.uint8]:
        """A part of the buffer whose last content has arrived, or will have when this returns."""
        self._sent[self._turn].wait()
        return self._buffers[self._turn].bytes[:num_bytes]

    def send(self, content: NDArray[np.uint8], target: int) -> None:
        """Enqueues the copy of what `next_free` gave, now filled, to device address `target`."""
        self._stream.to_device(target, self._buffers[self._turn].address, content.nbytes)
        self._sent[self._turn].record(self._stream)
        self._turn = 1 - self._turn
