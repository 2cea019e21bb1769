"""The collectives over two GPUs against torch, bit for bit: two addends are rounded once, however they travel.

Both ranks make everyone's inputs from seeds, and so each knows the whole result.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time

import pytest

torch = pytest.importorskip("torch")

from rank_processes import Rank, RankError, RankProcesses, join, leave, unique_id  # noqa: E402

from qwen3moe_engine.tensorrt.communicator import CommunicatorConfig  # noqa: E402
from qwen3moe_plugins.kernels import (  # noqa: E402
    BF16,
    FP16,
    FP32,
    AllGatherShape,
    AllGatherTensors,
    AllReduceShape,
    AllReduceTensors,
    KernelError,
    RMSNormShape,
    RMSNormTensors,
)

pytestmark = pytest.mark.multi_gpu

WORLD_SIZE = 2
ONE_SHOT_BYTES = 1 << 20
DTYPES = {torch.bfloat16: BF16, torch.float16: FP16, torch.float32: FP32}
BYTES = [2048, 64 * 4096, ONE_SHOT_BYTES - 16, ONE_SHOT_BYTES, 8 << 20, 64 << 20]
# Fewer elements than a packet has, and just around a packet, a block of threads and the limit of one shot.
ODD_COUNTS = [1, 2, 3, 5, 2047, 2049, 4099, 64 * 2048 + 1, ONE_SHOT_BYTES // 4 + 1, ONE_SHOT_BYTES // 2 + 3]


@pytest.fixture(scope="module")
def ranks(built_library):
    processes = RankProcesses(WORLD_SIZE)
    processes.join(ONE_SHOT_BYTES)
    yield processes
    processes.call_all(leave)
    processes.end(timeout=20)


@pytest.fixture
def fresh_ranks(built_library):
    processes = RankProcesses(WORLD_SIZE)
    yield processes
    with contextlib.suppress(TimeoutError):
        processes.end(timeout=5)


def current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def all_reduce(rank: Rank, x, out) -> None:
    tensors = AllReduceTensors(x.data_ptr(), out.data_ptr())
    rank.kernels.run("all_reduce", AllReduceShape(x.numel(), DTYPES[x.dtype]), tensors, 0, 0, current_stream())


def all_gather(rank: Rank, x, out) -> None:
    shape = AllGatherShape(x.numel(), DTYPES[x.dtype], WORLD_SIZE)
    rank.kernels.run("all_gather", shape, AllGatherTensors(x.data_ptr(), out.data_ptr()), 0, 0, current_stream())


def everyones(seed: int, count: int, dtype) -> list:
    """The inputs of all ranks."""
    generators = [torch.Generator("cuda").manual_seed(WORLD_SIZE * seed + index) for index in range(WORLD_SIZE)]
    return [torch.randn(count, generator=generator, device="cuda").to(dtype) for generator in generators]


def total(addends: list):
    return sum(addend.float() for addend in addends).to(addends[0].dtype)


def digest(tensor) -> str:
    return hashlib.blake2b(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


def check_sum(rank: Rank, count: int, dtype, offset: int) -> list[str]:
    """Digests of two sums, the second in place; `offset` elements off the alignment of an allocation."""
    guard = 64
    addends = everyones(count, count, dtype)
    memory = torch.full((2, offset + count + guard), torch.nan, dtype=dtype, device="cuda")
    x, out = (row[offset : offset + count] for row in memory)
    x.copy_(addends[rank.index])
    all_reduce(rank, x, out)
    assert torch.equal(x, addends[rank.index]), "the input changed"
    first = digest(out)
    assert torch.equal(out, total(addends)), f"{count} x {dtype}: {(out.float() - total(addends)).abs().max()}"
    all_reduce(rank, x, x)
    assert memory[:, offset + count :].isnan().all(), "written behind the end"
    assert memory[:, :offset].isnan().all(), "written before the start"
    return [first, digest(x)]


def check_sums(rank: Rank, dtype, counts: list[int], offsets: tuple[int, ...]) -> list[list[str]]:
    return [check_sum(rank, count, dtype, offset) for count in counts for offset in offsets]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums(ranks, dtype):
    """Right, the same bits on all ranks and at the second time; odd counts, and memory aligned to its elements only."""
    counts = [num_bytes // torch.empty(0, dtype=dtype).element_size() for num_bytes in BYTES]
    for whole in (
        ranks.call_all(check_sums, dtype, counts, (0,)),
        ranks.call_all(check_sums, dtype, ODD_COUNTS, (0, 1)),
    ):
        for digests in zip(*whole, strict=True):
            assert len({bits for of_rank in digests for bits in of_rank}) == 1


def check_gather(rank: Rank, dtype, count: int) -> None:
    x = everyones(count, count, dtype)
    out = torch.full((WORLD_SIZE, count), torch.nan, dtype=dtype, device="cuda")
    all_gather(rank, x[rank.index], out)
    assert torch.equal(out, torch.stack(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 4099, 64 * 75968])
def test_gather(ranks, dtype, count):
    ranks.call_all(check_gather, dtype, count)


def random_norm(rank: Rank, seed: int, num_tokens: int, hidden_size: int, dtype) -> list:
    """x of this rank, and the residual and weight that all ranks have."""
    count = num_tokens * hidden_size
    x = everyones(seed, count, dtype)[rank.index].view(num_tokens, hidden_size)
    return [x, everyones(seed + 1, count, dtype)[0].view(x.shape), everyones(seed + 2, hidden_size, dtype)[0]]


def add_rms_norm(rank: Rank, op: str, x, residual, weight):
    """out and residual_out of `op`, both poisoned first."""
    out, residual_out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    tensors = RMSNormTensors(*(tensor.data_ptr() for tensor in (x, residual, weight, out, residual_out)))
    rank.kernels.run(op, RMSNormShape(DTYPES[x.dtype], *x.shape, 1e-6), tensors, 0, 0, current_stream())
    return out, residual_out


def check_norm(rank: Rank, num_tokens: int, hidden_size: int, dtype) -> list[str]:
    x, residual, weight = random_norm(rank, num_tokens, num_tokens, hidden_size, dtype)
    summed = torch.empty_like(x)
    all_reduce(rank, x, summed)
    expected = add_rms_norm(rank, "rms_norm", summed, residual, weight)
    for _ in range(2):
        fused = add_rms_norm(rank, "all_reduce_add_rms_norm", x, residual, weight)
        assert torch.equal(fused[0], expected[0]) and torch.equal(fused[1], expected[1])
    assert not expected[0].isnan().any()
    return [digest(tensor) for tensor in fused]


# The last is more than goes in one shot.
@pytest.mark.parametrize(
    "shape", [(1, 8), (1, 2048), (3, 2056), (64, 2048), (2, 6144), (5, 16384), (300, 2048)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_fused_norm_is_the_two_operators(ranks, shape, dtype):
    """Bit for bit, and the same on all ranks."""
    first, second = ranks.call_all(check_norm, *shape, dtype)
    assert first == second


def check_other_world_size(rank: Rank) -> None:
    x = torch.zeros(8, device="cuda")
    shape = AllGatherShape(8, FP32, WORLD_SIZE + 1)
    rank.kernels.run("all_gather", shape, AllGatherTensors(x.data_ptr(), x.data_ptr()), 0, 0, current_stream())


def test_a_plan_for_another_world_size_is_refused(ranks):
    with pytest.raises(RankError, match="AllGather: rank 0 of 2: expected the communicator's world_size"):
        ranks.call(0, check_other_world_size)


def delay(rank: Rank, step: int) -> None:
    """Now one rank, now the other comes up to half a millisecond late."""
    if step % WORLD_SIZE == rank.index:
        torch.cuda._sleep(random.Random(step).randrange(1_000_000))


def check_many_sums(rank: Rank) -> int:
    """Elements that came out wrong in sums back to back, of changing size; nothing waits for the host in between."""
    steps, width = 4000, 8192
    generator = random.Random(0)
    counts = [generator.randint(1, width) for _ in range(steps)]
    addends = [row.view(steps, width) for row in everyones(1, steps * width, torch.float16)]
    x, out = addends[rank.index].clone(), torch.zeros_like(addends[0])
    for step, count in enumerate(counts):
        if step % 50 == 0:
            delay(rank, step // 50)
        all_reduce(rank, x[step, :count], out[step, :count])
    is_summed = torch.arange(width, device="cuda") < torch.tensor(counts, device="cuda")[:, None]
    return int((out != total(addends) * is_summed).sum())


def test_many_sums_back_to_back(ranks):
    assert ranks.call_all(check_many_sums) == [0, 0]


class Decode:
    """A graph of sums in one shot and by NCCL and a gather, each on another's result."""

    def __init__(self, rank: Rank):
        self.rank = rank
        self.x = torch.zeros(64 * 2048, dtype=torch.float16, device="cuda")
        self.small, self.odd = torch.empty_like(self.x), torch.empty(4099, dtype=torch.bfloat16, device="cuda")
        self.large = torch.empty(32 * self.x.numel(), dtype=torch.float16, device="cuda")
        self.weight = everyones(2, 2048, torch.float16)[0]
        self.gathered = torch.empty(WORLD_SIZE, 4099, dtype=torch.bfloat16, device="cuda")
        self.step()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.step()

    def step(self) -> None:
        all_reduce(self.rank, self.x, self.small)
        rows, residual = (tensor.view(-1, 2048) for tensor in (self.x, self.small))
        self.normed, _ = add_rms_norm(self.rank, "all_reduce_add_rms_norm", rows, residual, self.weight)
        self.large.copy_((self.small * (self.rank.index + 1)).repeat(32))
        all_reduce(self.rank, self.large, self.large)
        self.odd.copy_(self.large[-4099:])
        all_reduce(self.rank, self.odd, self.odd)
        all_gather(self.rank, self.odd * (self.rank.index + 1), self.gathered)

    def expected(self, addends: list):
        small = total(addends)
        rows = small.view(-1, 2048)
        normed, _ = add_rms_norm(self.rank, "rms_norm", rows, rows, self.weight)
        large = total([small * (index + 1) for index in range(WORLD_SIZE)])[-4099:].bfloat16()
        odd = total([large] * WORLD_SIZE)
        return small, normed, torch.stack([odd * (index + 1) for index in range(WORLD_SIZE)])


def check_graph(rank: Rank) -> int:
    """Wrong elements in 100 replays, with sums outside of the graph between them."""
    decode = Decode(rank)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for step in range(100):
        addends = everyones(1000 + step, decode.x.numel(), torch.float16)
        decode.x.copy_(addends[rank.index])
        delay(rank, step)
        decode.graph.replay()
        small, normed, gathered = decode.expected(addends)
        wrong += (decode.small != small).sum() + (decode.normed != normed).sum() + (decode.gathered != gathered).sum()
        if step % 3 == 0:
            other = addends[rank.index][: 1 + 977 * step].clone()
            all_reduce(rank, other, other)
            wrong += (other != small[: other.numel()]).sum()
    return int(wrong)


def test_graph_replays_mixed_with_other_sums(ranks):
    assert ranks.call_all(check_graph) == [0, 0]


def wait_for_sum(rank: Rank, count: int) -> None:
    x = torch.zeros(count, device="cuda")
    all_reduce(rank, x, x)
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()
    rank.communicator.check()


def make_graph(rank: Rank) -> None:
    rank.kept["decode"] = Decode(rank)


def wait_for_graph(rank: Rank) -> None:
    rank.kept["decode"].graph.replay()
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()
    rank.communicator.check()


def sum_for_ever(rank: Rank, count: int) -> None:
    x = torch.zeros(count, device="cuda")
    while True:
        with contextlib.suppress(RuntimeError, KernelError):
            for _ in range(50):
                all_reduce(rank, x, x)
            torch.cuda.synchronize()
        rank.communicator.check()


def sleep(rank: Rank) -> None:
    time.sleep(60)


@pytest.mark.parametrize("work", ["one-shot", "nccl", "graph", "traffic"])
def test_a_killed_peer_ends_the_survivor(fresh_ranks, work):
    """It names itself and the reason within 10 s, and its process exits by itself."""
    fresh_ranks.join(ONE_SHOT_BYTES)
    if work == "graph":
        fresh_ranks.call_all(make_graph)
    survivor = {
        "one-shot": (wait_for_sum, 2048),
        "nccl": (wait_for_sum, 1 << 22),
        "graph": (wait_for_graph,),
        "traffic": (sum_for_ever, 2048),
    }[work]
    fresh_ranks.send(0, *survivor)
    fresh_ranks.send(1, *(survivor if work == "traffic" else (sleep,)))
    time.sleep(0.5)
    start = time.monotonic()
    fresh_ranks.kill(1)
    fresh_ranks.alarm(0, "rank 1 was killed")
    with pytest.raises(RankError, match="CommunicatorError: rank 0 of 2: rank 1 was killed"):
        fresh_ranks.receive(0, timeout=10)
    print(f"{work}: the survivor raised after {time.monotonic() - start:.2f} s", end="")
    fresh_ranks.end(timeout=10)
    print(f" and had exited after {time.monotonic() - start:.2f} s")
    assert time.monotonic() - start < 10


def test_a_missing_peer_is_given_up(fresh_ranks):
    config = CommunicatorConfig(0, WORLD_SIZE, 0, ONE_SHOT_BYTES, timeout_seconds=3.0)
    start = time.monotonic()
    fresh_ranks.send(0, join, config, fresh_ranks.call(0, unique_id))
    with pytest.raises(RankError, match=r"CommunicatorError: rank 0 of 2: waited 3\.0+ s for ncclCommInitRank"):
        fresh_ranks.receive(0)
    fresh_ranks.end(timeout=10)
    print(f"given up and exited after {time.monotonic() - start:.2f} s")


def test_ranks_that_disagree_are_refused(fresh_ranks):
    group_id = fresh_ranks.call(0, unique_id)
    for index in range(WORLD_SIZE):
        fresh_ranks.send(index, join, CommunicatorConfig(index, WORLD_SIZE, index, ONE_SHOT_BYTES >> index), group_id)
    with pytest.raises(RankError, match="rank 0 of 2: one_shot_bytes: 1048576, but 524288 on rank 1"):
        fresh_ranks.receive(0)
    with pytest.raises(RankError, match="rank 1 of 2: one_shot_bytes: 524288, but 1048576 on rank 0"):
        fresh_ranks.receive(1)
