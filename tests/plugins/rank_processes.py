"""Processes for the tests of collectives, one a GPU, that run functions on request.

A function is called as function(rank, *arguments), has to be importable by name, and its result or error travels back.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from qwen3moe_engine.tensorrt.communicator import CollectiveLibrary, Communicator, CommunicatorConfig, find_nccl
from qwen3moe_plugins.kernels import KernelLibrary
from qwen3moe_plugins.library import KERNELS, find_library


class RankError(RuntimeError):
    """What a rank raised, as its type and message."""


@dataclass
class Rank:
    """A process as its functions see it."""

    index: int
    kernels: KernelLibrary
    library: CollectiveLibrary
    communicator: Communicator | None = None
    kept: dict[str, Any] = field(default_factory=dict)  # what a function leaves for a later one


def unique_id(rank: Rank) -> bytes:
    return rank.library.unique_id()


def join(rank: Rank, config: CommunicatorConfig, group_id: bytes) -> None:
    rank.communicator = rank.library.join(config, group_id)


def leave(rank: Rank) -> None:
    rank.kept.clear()
    if rank.communicator is not None:
        rank.communicator.close()


def _serve(index: int, orders: Connection, alarms: Connection) -> None:
    import torch

    torch.cuda.set_device(index)
    kernels = find_library(KERNELS)
    rank = Rank(index, KernelLibrary(kernels), CollectiveLibrary(kernels, find_nccl()))
    threading.Thread(target=_watch, args=(rank, alarms), daemon=True).start()
    while (order := orders.recv()) is not None:
        function, arguments = order
        try:
            orders.send((True, function(rank, *arguments)))
        except Exception as error:
            orders.send((False, f"{type(error).__name__}: {error}"))


def _watch(rank: Rank, alarms: Connection) -> None:
    reason = alarms.recv()
    assert rank.communicator is not None
    rank.communicator.abort(reason)


class RankProcesses:
    """`world_size` processes, not yet a group."""

    def __init__(self, world_size: int = 2):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        self.world_size = world_size
        self._orders, self._alarms, self.processes = [], [], []
        for index in range(world_size):
            orders, their_orders = context.Pipe()
            alarms, their_alarms = context.Pipe()
            process = context.Process(target=_serve, args=(index, their_orders, their_alarms), daemon=True)
            process.start()
            their_orders.close()
            their_alarms.close()
            self._orders.append(orders)
            self._alarms.append(alarms)
            self.processes.append(process)

    def join(self, one_shot_bytes: int, timeout_seconds: float = 30.0) -> None:
        group_id = self.call(0, unique_id)
        for index in range(self.world_size):
            config = CommunicatorConfig(index, self.world_size, index, one_shot_bytes, timeout_seconds)
            self.send(index, join, config, group_id)
        self.receive_all()

    def send(self, index: int, function: Any, *arguments: Any) -> None:
        self._orders[index].send((function, arguments))

    def receive(self, index: int, timeout: float = 30.0) -> Any:
        """The result of the rank's function. Raises RankError with what it raised."""
        if not self._orders[index].poll(timeout):
            raise TimeoutError(f"rank {index} gave no answer in {timeout} s")
        succeeded, result = self._orders[index].recv()
        if not succeeded:
            raise RankError(result)
        return result

    def receive_all(self) -> list[Any]:
        return [self.receive(index) for index in range(self.world_size)]

    def call(self, index: int, function: Any, *arguments: Any) -> Any:
        self.send(index, function, *arguments)
        return self.receive(index)

    def call_all(self, function: Any, *arguments: Any) -> list[Any]:
        for index in range(self.world_size):
            self.send(index, function, *arguments)
        return self.receive_all()

    def kill(self, index: int) -> None:
        self.processes[index].kill()
        self.processes[index].join()

    def alarm(self, index: int, reason: str) -> None:
        """Makes the rank abort its communicator, on a thread other than the one that runs its functions."""
        self._alarms[index].send(reason)

    def end(self, timeout: float) -> None:
        """Lets the processes that still run exit by themselves; kills those that do not, and raises TimeoutError."""
        deadline = time.monotonic() + timeout
        alive = [index for index, process in enumerate(self.processes) if process.is_alive()]
        for index in alive:
            self._orders[index].send(None)
        for index in alive:
            self.processes[index].join(max(0.0, deadline - time.monotonic()))
        hung = [index for index in alive if self.processes[index].is_alive()]
        for index in hung:
            self.kill(index)
        if hung:
            raise TimeoutError(f"ranks {hung} did not exit in {timeout} s")
