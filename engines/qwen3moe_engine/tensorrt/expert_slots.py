"""Experts in device memory, some of which change while a model runs.

Owns: the copies of counts to the host and of experts and maps to the device. No address changes, so CUDA graphs stay
valid. Must not know TensorRT, nor who decides what moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.parallel.rebalancing import Arrival
from qwen3moe_engine.tensorrt.bindings import Bindings
from qwen3moe_engine.tensorrt.cuda import Stream
from qwen3moe_engine.tensorrt.double_buffer import DoubleBuffer
from qwen3moe_engine.tensorrt.loading import stream_weight
from qwen3moe_engine.tensorrt.random_weights import WeightMaker, fill_weight
from qwen3moe_engine.weights import Progress, WeightPlan, num_bytes_of

Fill = Callable[[WeightPlan, int], int]  # a weight, to an address of the device
CHUNK_BYTES = 8 << 20  # of each of two buffers, which live for one move: 64 MB would take 20 ms to make


class DeviceExperts:
    """Implements `ExpertSlots`, between steps. maker: of weights that are made, not read."""

    def __init__(
        self,
        manifest: Manifest,
        bindings: Bindings,
        stream: Stream,
        maker: WeightMaker | None,
        progress: Progress,
    ):
        self._manifest, self._bindings, self._stream = manifest, bindings, stream
        self._maker, self._progress = maker, progress

    def loads(self) -> NDArray[np.uint32]:
        """See `ExpertSlots`. Waits for the steps before."""
        num_layers = len(self._manifest.of_kind("load"))
        counts = np.empty((num_layers, self._bindings.load_stride), np.uint32)
        self._stream.to_host(counts.ctypes.data, self._bindings.load_address, counts.nbytes)
        self._stream.synchronize()
        return counts[:, : self._manifest.dims.num_experts]

    def take_in(self, arrivals: Sequence[Arrival]) -> None:
        with self._source() as fill:
            plans = self._progress([arrival.plan for arrival in arrivals], "moving experts")
            for plan, arrival in zip(plans, arrivals, strict=True):
                fill(plan, self._bindings.addresses[plan.spec.name] + arrival.slot * num_bytes_of(plan.spec))
        self._stream.synchronize()

    def bind(self, constants: dict[str, NDArray[np.int32]]) -> None:
        for name, array in constants.items():
            assert array.shape == self._bindings.shapes[name], name
            self._stream.to_device(self._bindings.addresses[name], array.ctypes.data, array.nbytes)
        self._stream.synchronize()

    @contextmanager
    def _source(self) -> Iterator[Fill]:
        maker = self._maker
        if maker is not None:
            yield lambda plan, address: fill_weight(plan, address, maker)
            return
        with DoubleBuffer(self._stream, CHUNK_BYTES) as buffers:
            yield lambda plan, address: stream_weight(plan, address, self._manifest.dtype, buffers)
