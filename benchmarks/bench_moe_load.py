"""What replicas and the counting of load cost qwen3moe_moe: BalancedMoE beside MoE, at Qwen3-30B-A3B's shape, every
expert here in both. Needs no torch.

    python benchmarks/bench_moe_load.py

A CUDA graph has calls over two layers' weights in turn, 1.2 GB each, more than L2 keeps. Graphs are timed in turns, so
that a drift of the GPU meets all of them; MoE twice, as the difference between the two is what this says nothing about.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.expert_placement import MAP_ROWS
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, Event, Graph, Stream, use_device
from qwen3moe_plugins.kernels import FP16, FillShape, FillTensors, KernelLibrary, MoEShape, MoETensors
from qwen3moe_plugins.library import KERNELS, find_library

E, TOP_K, H, I = 128, 8, 2048, 768  # noqa: E741
TOKENS = (1, 2, 4, 16, 64, 256, 1024)
CALLS, ROUNDS = 16, 15


class Layers:
    """The weights of two layers, and graphs of calls over them."""

    def __init__(self, memory: DeviceMemory):
        self._library, self._memory, self._stream = KernelLibrary(find_library(KERNELS)), memory, Stream()
        self._start, self._end = Event(timed=True), Event(timed=True)
        self._weights = [(self._random(E * 2 * I * H, 0.04), self._random(E * H * I, 0.06)) for _ in range(2)]

    def capture(self, num_tokens: int, is_balanced: bool) -> tuple[Graph, int]:
        """A graph of calls, and the address of what they count."""
        shape = MoEShape(FP16, num_tokens, H, I, E, E, TOP_K, 1)
        size = self._library.workspace_size("moe", shape)
        hidden, logits = self._random(num_tokens * H, 1.0), self._random(num_tokens * E, 3.0)
        rows = [*range(E)] * (MAP_ROWS if is_balanced else 1)
        places = (self._send(rows), self._memory.allocate(num_tokens * H * 2, "out"))
        load = self._send([0] * E)
        more = (self._send(range(num_tokens)), self._send(range(num_tokens + 1)), load) if is_balanced else ()
        if is_balanced:
            shape.map_rows, shape.num_seqs = MAP_ROWS, num_tokens
        calls = [MoETensors(hidden, logits, *weights, *places, *more) for weights in self._weights]
        workspace = self._memory.allocate(size, "workspace")

        def enqueue() -> None:
            for number in range(CALLS):
                self._library.run("moe", shape, calls[number % 2], workspace, size, self._stream.handle)

        return self._stream.capture(enqueue), load

    def microseconds(self, graph: Graph) -> float:
        """Of a call."""
        self._start.record(self._stream)
        graph.launch()
        self._end.record(self._stream)
        self._end.wait()
        return 1e3 * self._end.milliseconds_since(self._start) / CALLS

    def fetch(self, address: int) -> NDArray[np.int32]:
        counts = np.empty(E, np.int32)
        self._stream.to_host(counts.ctypes.data, address, counts.nbytes)
        self._stream.synchronize()
        return counts

    def _random(self, count: int, half_width: float) -> int:
        address = self._memory.allocate(2 * count, "values")
        shape = FillShape(count, count, count, 0, count, FP16, -half_width, half_width)  # the same for all graphs
        self._library.run("fill", shape, FillTensors(address), 0, 0, self._stream.handle)
        return address

    def _send(self, values: range | list[int]) -> int:
        array = np.array(values, np.int32)
        address = self._memory.allocate(array.nbytes, "indices")
        self._stream.to_device(address, array.ctypes.data, array.nbytes)
        self._stream.synchronize()
        return address


def table() -> Iterator[str]:
    """Rows of the table, in Markdown."""
    device, memory = use_device(0), DeviceMemory()
    layers = Layers(memory)
    yield f"MoE, E {E}, top {TOP_K}, H {H}, I {I}, fp16, {device.name}: us\n"
    yield "| tokens | MoE | MoE again | BalancedMoE |\n|---|---|---|---|"
    for num_tokens in TOKENS:
        graphs = [layers.capture(num_tokens, is_balanced) for is_balanced in (False, False, True)]
        times = [[layers.microseconds(graph) for graph, _ in graphs] for _ in range(ROUNDS)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        counted = int(layers.fetch(graphs[2][1]).sum())
        assert counted == ROUNDS * CALLS * num_tokens * TOP_K, counted
        yield f"| {num_tokens} | {' | '.join(f'{median:.2f}' for median in medians)} |"
    memory.close()


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
