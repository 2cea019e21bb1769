"""Times sums over two GPUs by size, in one shot and by NCCL, beside the bound of the link.

    python benchmarks/bench_collective.py path/to/libqwen3moe_kernels.so

fp16; a CUDA graph of many sums is replayed, and the time of one is the median over replays on the slower rank. The
bound is the message once over the link, in each direction at the same time, at the rate of a large copy measured first.
"+ norm" is a sum in one shot with AddRMSNorm behind it, "fused norm" the two as one operator.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT / "engines")]
from qwen3moe_engine.tensorrt.communicator import CollectiveLibrary, CommunicatorConfig, find_nccl  # noqa: E402
from qwen3moe_plugins.kernels import (  # noqa: E402
    FP16,
    AllReduceShape,
    AllReduceTensors,
    KernelLibrary,
    RMSNormShape,
    RMSNormTensors,
)

WORLD_SIZE = 2
BYTES = [2 << 10 << power for power in range(16)]  # 2 KB to 64 MB
HIDDEN_SIZE = 2048
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
    x = torch.randn(num_bytes // 2, device="cuda").half()
    out = torch.empty_like(x)
    tensors = AllReduceTensors(x.data_ptr(), out.data_ptr())

    def enqueue() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        kernels.run("all_reduce", AllReduceShape(x.numel(), FP16), tensors, 0, 0, stream)

    return replay_us(enqueue, repeats=50 if num_bytes <= 1 << 20 else 10)


def norm_us(kernels: KernelLibrary, num_bytes: int) -> tuple[float, float]:
    """Microseconds of AllReduce and AddRMSNorm, and of the two as one operator."""
    x, residual, summed, out, residual_out = torch.randn(
        5, num_bytes // 2 // HIDDEN_SIZE, HIDDEN_SIZE, device="cuda"
    ).half()
    weight = torch.ones(HIDDEN_SIZE, device="cuda").half()
    shape = RMSNormShape(FP16, len(x), HIDDEN_SIZE, 1e-6)
    tensors = RMSNormTensors(*(tensor.data_ptr() for tensor in (x, residual, weight, out, residual_out)))
    sum_tensors = AllReduceTensors(x.data_ptr(), summed.data_ptr())

    def enqueue_both() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        kernels.run("all_reduce", AllReduceShape(x.numel(), FP16), sum_tensors, 0, 0, stream)
        kernels.run("rms_norm", shape, tensors, 0, 0, stream)

    def enqueue_one() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        kernels.run("all_reduce_add_rms_norm", shape, tensors, 0, 0, stream)

    return replay_us(enqueue_both, 50), replay_us(enqueue_one, 50)


def replay_us(enqueue: Callable[[], None], repeats: int) -> float:
    """Microseconds of a call in a replayed graph of `repeats`."""
    enqueue()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(repeats):
            enqueue()
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


def run_rank(rank: int, path: Path, connection: Connection) -> None:
    """Answers each size with microseconds: of a sum in one shot, by NCCL, and where asked with the norm."""
    torch.cuda.set_device(rank)
    kernels, library = KernelLibrary(path), CollectiveLibrary(path, find_nccl())
    communicators = []
    for one_shot_bytes in (max(BYTES), 0):
        if rank == 0:
            connection.send(library.unique_id())
        config = CommunicatorConfig(rank, WORLD_SIZE, rank, one_shot_bytes)
        communicators.append(library.join(config, connection.recv()))
    connection.send(library.nccl_version)
    while (order := connection.recv()) is not None:
        num_bytes, with_norm = order
        times = []
        for communicator in reversed(communicators):
            communicator.use()
            times.append(sum_us(kernels, num_bytes))
        connection.send([*reversed(times), *(norm_us(kernels, num_bytes) if with_norm else ())])
    for communicator in communicators:
        communicator.close()


def start_ranks(path: Path) -> list[Connection]:
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
    ranks = start_ranks(Path(sys.argv[1]).resolve())
    (version,) = {rank.recv() for rank in ranks}
    rate = copy_rate()
    print(f"AllReduce over {WORLD_SIZE} x {torch.cuda.get_device_name()}, fp16, NCCL {version}, NVLink multicast off")
    print(f"copy from GPU to GPU: {rate / 1e9:.0f} GB/s\n")
    print("| bytes | tokens of 2048 | one shot us | NCCL us | bound us | NCCL / one shot | + norm us | fused norm us |")
    print("|---|---|---|---|---|---|---|---|")
    for num_bytes in BYTES:
        with_norm = 2 * HIDDEN_SIZE <= num_bytes <= 4 << 20
        for rank in ranks:
            rank.send((num_bytes, with_norm))
        one_shot, nccl, *norms = (max(times) for times in zip(*(rank.recv() for rank in ranks), strict=True))
        cells = [f"{one_shot:.1f}", f"{nccl:.1f}", f"{1e6 * num_bytes / rate:.2f}", f"{nccl / one_shot:.2f}"]
        cells += [f"{norm:.1f}" for norm in norms] or ["", ""]
        print(f"| {num_bytes} | {num_bytes / 2 / HIDDEN_SIZE:g} | {' | '.join(cells)} |", flush=True)
    for rank in ranks:
        rank.send(None)


if __name__ == "__main__":
    main()
