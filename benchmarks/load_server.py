"""The server under load for minutes: errors, lost tokens, memory over time, throughput, and SIGTERM in the middle.

    qwen3moe-export onnx tests/data/qwen3moe-tiny -o export
    python benchmarks/load_server.py export tests/data/qwen3moe-tiny 10

On ONNX Runtime. For so many minutes 200 clients stream one request after another. Then the same server and one that
runs a sequence at a time take turns, so that both see the machine in the same state. Last, a server is told to stop,
with 200 requests in flight. Outputs have just the length asked for, and log-probabilities count every token.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnxruntime
from server_process import ServerProcess, run_server

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.client import Client, find_model, open_session, run_load
from qwen3moe_engine.bench.figures import Figures, measure
from qwen3moe_engine.bench.record import RequestRecord
from qwen3moe_engine.bench.target import Target
from qwen3moe_engine.bench.workload import LengthRange, RandomPrompts, WorkItem, make_workload

NUM_CLIENTS, MAX_SEQS, GRACE = 200, 32, 60
PROMPTS, OUTPUT_LEN = RandomPrompts(LengthRange(8, 128), 2045), LengthRange(16, 64)
SAMPLE_EVERY = 5.0  # seconds
NUM_TURNS = 3
WARM_UP = 60.0  # seconds at most that no line is fitted to: connections and the prefix cache fill
FLAT = 0.01  # of the memory: growth by the fitted line over the whole time
COMMAND = "from qwen3moe_export.cli import main; main()"


@dataclass(frozen=True)
class Memory:
    """seconds since the load began; resident: MiB."""

    seconds: np.ndarray
    resident: np.ndarray

    def slope(self) -> float:
        """MiB a minute, of the least-squares line behind the warm-up."""
        late = self.seconds >= min(WARM_UP, self.seconds[-1] / 4)
        return float(np.polyfit(self.seconds[late] / 60, self.resident[late], 1)[0])


@contextmanager
def serve(export: str, weights: str, *options: object) -> Iterator[ServerProcess]:
    words = ["serve", export, "--weights", weights, "--port", 0, "--grace-period", GRACE, *options]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COMMAND, *map(str, words)]
        with run_server(command, Path(folder) / "log") as server:
            yield server


def target_of(server: ServerProcess) -> Target:
    return Target(server.url, asyncio.run(find_model(server.url, None)), counts_tokens=True, timeout=300.0)


async def sample_memory(server: ServerProcess, minutes: float) -> Memory:
    start, rows = time.perf_counter(), []
    while (seconds := time.perf_counter() - start) < minutes * 60:
        rows.append((seconds, server.resident_bytes() / 2**20))
        await asyncio.sleep(SAMPLE_EVERY)
    return Memory(*np.array(rows).T)


async def load_for(
    server: ServerProcess, target: Target, num_clients: int, minutes: float
) -> tuple[list[RequestRecord], Memory]:
    deadline = time.perf_counter() + minutes * 60

    def items() -> Iterator[WorkItem]:
        for item in cycle(make_workload(PROMPTS, OUTPUT_LEN, 20_000, seed=1)):
            if time.perf_counter() > deadline:
                return
            yield item

    async with open_session(None, target.timeout) as session:
        client = Client(target, session)
        return await asyncio.gather(ClosedLoop(num_clients).drive(client.send, items()), sample_memory(server, minutes))


async def load_widest(target: Target) -> None:
    """Steps as large as any to come: full batches with the longest of contexts among them. What ONNX Runtime allocates
    for a size it keeps, and random lengths would come to the largest only now and then, as steps up in memory."""
    lengths, longest = PROMPTS.input_len, LengthRange(OUTPUT_LEN.high, OUTPUT_LEN.high)
    of_length = {
        length: make_workload(RandomPrompts(LengthRange(length, length), PROMPTS.vocab_size), longest, 128, seed=3)
        for length in (lengths.low, lengths.high)
    }
    items = [of_length[lengths.low if index % 4 else lengths.high][index] for index in range(128)]
    await run_load(target, ClosedLoop(2 * MAX_SEQS), items)


async def load_and_terminate(server: ServerProcess, target: Target) -> tuple[list[RequestRecord], float]:
    """SIGTERM as soon as all requests are accepted. Returns the second of it, too."""
    items = make_workload(PROMPTS, OUTPUT_LEN, NUM_CLIENTS, seed=2)
    load = asyncio.ensure_future(run_load(target, Poisson(float("inf"), 0), items))
    while await asyncio.to_thread(server.num_open_requests) < NUM_CLIENTS:
        await asyncio.sleep(0.05)
    server.terminate()
    terminated = time.perf_counter()
    return await load, terminated


def print_load(figures: Figures, name: str) -> None:
    ttft, itl = figures.ttft, figures.itl
    assert ttft is not None and itl is not None
    print(
        f"| {name} | {figures.num_requests} | {sum(figures.errors.values())} | {figures.num_lost_tokens} | "
        f"{figures.request_throughput:.2f} | {figures.output_throughput:.1f} | {ttft.p50:.0f} | {ttft.p99:.0f} | "
        f"{itl.p50:.1f} | {itl.p99:.1f} |"
    )


def print_turns(server: ServerProcess, single: ServerProcess, minutes: float) -> None:
    """Each for so many minutes, NUM_TURNS times."""
    rounds: dict[str, list[Figures]] = {"32 clients, 32 at a time": [], "2 clients, one at a time": []}
    for _ in range(NUM_TURNS):
        for (name, figures), which, num_clients in zip(rounds.items(), (server, single), (MAX_SEQS, 2), strict=True):
            records, _ = asyncio.run(load_for(which, target_of(which), num_clients, minutes))
            figures.append(measure(records))
            print_load(figures[-1], name)
    batched, alone = (float(np.median([one.output_throughput for one in figures])) for figures in rounds.values())
    print(f"\n{batched / alone:.1f} times the throughput of one at a time, by the medians.")


def print_memory(memory: Memory) -> None:
    growth = memory.slope() * memory.seconds[-1] / 60
    is_flat = abs(growth) < FLAT * memory.resident[-1]
    print("\n| minute | resident MiB |\n|---|---|")
    for minute in range(int(memory.seconds[-1] // 60) + 1):
        print(f"| {minute} | {np.interp(minute * 60, memory.seconds, memory.resident):.1f} |")
    print(
        f"\nSlope behind the warm-up: {memory.slope():+.3f} MiB a minute, {growth:+.2f} MiB in all, of "
        f"{memory.resident[-1]:.0f}: {'flat' if is_flat else 'NOT FLAT'}."
    )


def print_termination(records: Sequence[RequestRecord], terminated: float, exit_code: int) -> None:
    figures = measure(records)
    last = max(record.end for record in records)
    began = sum(1 for record in records if record.chunk_times and record.chunk_times[0] < terminated)
    print(
        f"\nSIGTERM with {len(records)} requests in flight, {began} of which had a token: {figures.num_successful} "
        f"finished, {sum(figures.errors.values())} failed {figures.errors or ''}, {figures.num_lost_tokens} lost "
        f"tokens; the last token came {last - terminated:.1f} s later (grace period {GRACE} s), exit code {exit_code}."
    )


def main() -> None:
    export, weights, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    print(f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores for server and client\n")
    columns = ("server", "requests", "errors", "lost tokens", "requests/s", "output tokens/s")
    columns += ("TTFT p50 ms", "p99", "ITL p50 ms", "p99")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    with serve(export, weights, "--max-seqs", MAX_SEQS) as server:
        target = target_of(server)
        asyncio.run(load_widest(target))
        records, memory = asyncio.run(load_for(server, target, NUM_CLIENTS, minutes))
        print_load(measure(records), f"{NUM_CLIENTS} clients, {MAX_SEQS} at a time, {minutes:g} minutes")
        with serve(export, weights, "--max-seqs", 1) as single:
            print_turns(server, single, minutes / 20)
    print_memory(memory)
    with serve(export, weights, "--max-seqs", MAX_SEQS) as server:
        records, terminated = asyncio.run(load_and_terminate(server, target_of(server)))
        print_termination(records, terminated, server.wait(GRACE))


if __name__ == "__main__":
    main()
