"""When requests are sent.

Owns: open loops, where clients do not wait for each other, and closed ones, where they do. Must not know what is sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3moe_engine.bench.record import RequestRecord
from qwen3moe_engine.bench.workload import WorkItem

Send = Callable[[WorkItem, float], Awaitable[RequestRecord]]  # of an item and the time it is due


@dataclass(frozen=True)
class Poisson:
    """rate: requests a second on average, the gaps between them exponential; inf: all at once."""

    rate: float
    seed: int

    def offsets(self, count: int) -> list[float]:
        """Seconds from the start at which each is due; the first at once."""
        if math.isinf(self.rate) or not count:
            return [0.0] * count
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate, count - 1)
        return [0.0, *np.cumsum(gaps).tolist()]

    def __str__(self) -> str:
        return "all at once" if math.isinf(self.rate) else f"{self.rate:g} requests/s in a Poisson process"

    async def drive(self, send: Send, items: Sequence[WorkItem]) -> list[RequestRecord]:
        start = time.perf_counter()
        tasks = []
        for item, offset in zip(items, self.offsets(len(items)), strict=True):
            due = start + offset
            await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.ensure_future(send(item, due)))
        return list(await asyncio.gather(*tasks))


@dataclass(frozen=True)
class ClosedLoop:
    """concurrency: clients, each of which sends its next request when its last is over."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} clients, each waiting for its last answer"

    async def drive(self, send: Send, items: Iterable[WorkItem]) -> list[RequestRecord]:
        pending = iter(items)
        records: list[RequestRecord] = []

        async def client() -> None:
            for item in pending:
                records.append(await send(item, time.perf_counter()))

        await asyncio.gather(*(client() for _ in range(self.concurrency)))
        return records
