"""Times sums over two GPUs by size, in one shot and by NCCL, beside the bound of the link.

    python benchmarks/bench_collective.py path/to/libqwen3moe_kernels.so

fp16; a CUDA graph of many sums is replayed, and the time of one is the median over replays on the slower rank. The
bound is the message once over the link, in each direction at the same time, at the rate of a large copy measured first.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT / "engines")]
from qwen3moe_engine.tensorrt.communicator import CollectiveLibrary, CommunicatorConfig, find_nccl  # noqa: E402
from qwen3moe_plugins.kernels import FP16, AllReduceShape, AllReduceTensors, KernelLibrary  # noqa: E402

WORLD_SIZE = 2
BYTES = [2 << 10 << power for power in range(16)]  # 2 KB to 64 MB
REPLAYS = 20


def copy_rate() -> float:
    """Bytes a second from GPU 0 to GPU 1."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda:0")
    target = torch.empty_like(source, device="cuda:1")
    times = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        torch.cuda.synchronize()
        times.append(1e-3 * start.elapsed_time(stop))
    return source.numel() / statistics.median(times)


def sum_us(kernels: KernelLibrary, num_bytes: int) -> float:
    """Microseconds of one sum with the communicator in use."""
    repeats = 50 if num_bytes <= 1 << 20 else 10
    x = torch.randn(num_bytes // 2, device="cuda").half()
    out = torch.empty_like(x)
    tensors = AllReduceTensors(x.data_ptr(), out.data_ptr())

    def enqueue(times: int) -> None:
        for _ in range(times):
            stream = torch.cuda.current_stream().cuda_stream
            kernels.run("all_reduce", AllReduceShape(x.numel(), FP16), tensors, 0, 0, stream)

    enqueue(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        enqueue(repeats)
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop) / repeats)
    return statistics.median(times)


def run_rank(rank: int, path: str, connection: Connection) -> None:
    """Answers each size with (one shot, NCCL) in microseconds."""
    torch.cuda.set_device(rank)
    kernels, library = KernelLibrary(path), CollectiveLibrary(Path(path), find_nccl())
    communicators = []
    for one_shot_bytes in (max(BYTES), 0):
        if rank == 0:
            connection.send(library.unique_id())
        config = CommunicatorConfig(rank, WORLD_SIZE, rank, one_shot_bytes)
        communicators.append(library.join(config, connection.recv()))
    connection.send(library.nccl_version)
    while (num_bytes := connection.recv()) is not None:
        times = []
        for communicator in communicators:
            communicator.use()
            times.append(sum_us(kernels, num_bytes))
        connection.send(times)
    for communicator in communicators:
        communicator.close()


def start_ranks(path: str) -> list[Connection]:
    context = multiprocessing.get_context("spawn")
    connections = []
    for rank in range(WORLD_SIZE):
        ours, theirs = context.Pipe()
        context.Process(target=run_rank, args=(rank, path, theirs)).start()
        connections.append(ours)
    for _ in range(2):
        unique_id = connections[0].recv()
        for connection in connections:
            connection.send(unique_id)
    return connections


def main() -> None:
    ranks = start_ranks(sys.argv[1])
    (version,) = {rank.recv() for rank in ranks}
    rate = copy_rate()
    print(f"AllReduce over {WORLD_SIZE} x {torch.cuda.get_device_name()}, fp16, NCCL {version}, NVLink multicast off")
    print(f"copy from GPU to GPU: {rate / 1e9:.0f} GB/s\n")
    print("| bytes | tokens of 2048 | one shot us | NCCL us | bound us | NCCL / one shot |\n|---|---|---|---|---|---|")
    for num_bytes in BYTES:
        for rank in ranks:
            rank.send(num_bytes)
        one_shot, nccl = (max(times) for times in zip(*(rank.recv() for rank in ranks), strict=True))
        bound = 1e6 * num_bytes / rate
        tokens = num_bytes / 4096
        print(
            f"| {num_bytes} | {tokens:g} | {one_shot:.1f} | {nccl:.1f} | {bound:.2f} | {nccl / one_shot:.2f} |",
            flush=True,
        )
    for rank in ranks:
        rank.send(None)


if __name__ == "__main__":
    main()
