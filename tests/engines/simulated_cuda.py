"""A stream that runs as late as it may, in the host's memory, under the TensorRT executor's own code.

What is enqueued happens when somebody waits for it, in order. So a buffer that is filled again too early, an input that
a step in flight still has to read, and a token that is looked at before it is there all give other tokens.
"""
# ruff: noqa: N802, N815 - CUDA's names

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

SUCCESS = SimpleNamespace(name="cudaSuccess")


class SimulatedCuda:
    """In the place of `cuda.bindings.runtime`, as far as the executor uses it. Addresses are real."""

    cudaError_t = SimpleNamespace(cudaSuccess=SUCCESS)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaHostAllocDefault, cudaEventDisableTiming = 0, 2

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._num_enqueued = self._num_run = 0
        self._recorded: dict[int, int] = {}
        self.num_launches = 0

    def enqueue(self, work: Callable[[], None]) -> None:
        if self._captured is not None:
            self._captured.append(work)
        else:
            self._queue.append(work)
            self._num_enqueued += 1

    def cudaMalloc(self, num_bytes: int):
        block = (ctypes.c_uint8 * num_bytes)()
        address = ctypes.addressof(block)
        self._memory[address] = block
        return SUCCESS, address

    def cudaHostAlloc(self, num_bytes: int, _flags: int):
        return self.cudaMalloc(num_bytes)

    def cudaFree(self, address: int):
        del self._memory[address]
        return (SUCCESS,)

    cudaFreeHost = cudaFree

    def cudaStreamCreate(self):
        return SUCCESS, 1

    def cudaStreamDestroy(self, _stream: int):
        return (SUCCESS,)

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, _kind: int, _stream: int):
        self.enqueue(lambda: ctypes.memmove(target, source, num_bytes) and None)
        return (SUCCESS,)

    def cudaStreamSynchronize(self, _stream: int):
        self._run_to(self._num_enqueued)
        return (SUCCESS,)

    def cudaEventCreateWithFlags(self, _flags: int):
        self._recorded[len(self._recorded)] = 0
        return SUCCESS, len(self._recorded) - 1

    def cudaEventDestroy(self, _event: int):
        return (SUCCESS,)

    def cudaEventRecord(self, event: int, _stream: int):
        self._recorded[event] = self._num_enqueued
        return (SUCCESS,)

    def cudaEventSynchronize(self, event: int):
        self._run_to(self._recorded[event])
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, _stream: int, _mode: int):
        self._captured = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, _stream: int):
        captured, self._captured = self._captured, None
        return SUCCESS, captured

    def cudaGraphInstantiate(self, graph: list, _flags: int):
        return SUCCESS, graph

    def cudaGraphDestroy(self, _graph: list):
        return (SUCCESS,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: list, _stream: int):
        self.num_launches += 1
        for work in graph:
            self.enqueue(work)
        return (SUCCESS,)

    def _run_to(self, count: int) -> None:
        while self._num_run < count:
            self._queue[0]()  # it stays if it raises
            del self._queue[0]
            self._num_run += 1


def array_at(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Memory as an array that shares it."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), dtype).reshape(shape)
