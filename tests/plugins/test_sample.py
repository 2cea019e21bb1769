"""qwen3moe_sample and the engine's sampler draw, token for token, what the rule in plugins/src/kernels/sample.cu says.

The rule is written once more here, as plainly as it goes: it sorts the whole row. The kernel searches by radix, the
engine's sampler sorts a part; each could hide a mistake that the other shares with it, but not with this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from qwen3moe_engine import sampling_rule
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_plugins.kernels import KernelError, KernelLibrary, SampleShape, SampleTensors
from qwen3moe_plugins.library import KERNELS

F32 = np.float32
EXP2_COEFFICIENTS = (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)


@dataclass(frozen=True)
class Request:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    offset: int = 0


def philox(seed: int, offset: int) -> int:
    """The first 64 bits of Philox4x32-10."""
    mask = 0xFFFFFFFF
    c, k = [offset & mask, offset >> 32, 0, 0], [seed & mask, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & mask, first >> 32 ^ c[3] ^ k[1], first & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c[1] << 32 | c[0]


def weights(logits: np.ndarray, scale: np.float32, min_p: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        t = (logits - logits.max()) * scale
    drawn = t >= F32(-40)
    t = np.where(drawn, t, F32(0))
    whole = np.rint(t)
    x, e = t - whole, F32(0)
    for coefficient in EXP2_COEFFICIENTS:
        e = e * x + F32(coefficient)
    e = np.ldexp(e, whole.astype(np.int32))
    return np.where(drawn & (e >= F32(min_p)), np.floor(e * F32(2**40)), 0).astype(np.uint64)


def sample(logits: np.ndarray, request: Request) -> int:
    """The token, by the rule of sample.cu. logits [V], fp32."""
    logits = np.where(np.isnan(logits), F32(-np.inf), logits)
    with np.errstate(all="ignore"):
        scale = F32(1.44269504) / F32(request.temperature)
    if not (request.temperature > 0 and np.isfinite(scale) and np.isfinite(logits.max())):
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if 0 < request.top_k < len(order):
        order = order[: request.top_k]
    w = np.zeros(len(logits), np.uint64)
    w[order] = weights(logits, scale, request.min_p)[order]
    if request.top_p < 1:
        target = np.uint64(max(1, math.ceil(float(F32(request.top_p)) * float(w.sum()))))
        w[order[np.searchsorted(np.cumsum(w[order]), target) + 1 :]] = 0
    running = np.cumsum(w)
    drawn = np.uint64(philox(request.seed, request.offset) * int(running[-1]) >> 64)
    return int(np.searchsorted(running, drawn, side="right"))


def test_philox_is_the_published_one():
    """The known answer of Random123 for counter and key 0."""
    assert philox(0, 0) == 0xE169C58D_6627E8D5


def test_definition_draws_by_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], F32))
    drawn = [sample(logits, Request(seed=7, offset=i)) for i in range(4000)]
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(frequencies, [0.5, 0.3, 0.15, 0.05], atol=4 * math.sqrt(0.25 / 4000))
    for request, kept in [(Request(top_k=2), 2), (Request(top_p=0.7), 2), (Request(top_p=0.81), 3),
                          (Request(min_p=0.2), 3), (Request(top_p=0.0), 1)]:  # fmt: skip
        tokens = {sample(logits, replace(request, offset=i)) for i in range(300)}
        assert tokens == set(range(kept)), request


REQUESTS = [
    Request(temperature=0.0),
    Request(),
    Request(temperature=0.6, top_k=20, top_p=0.95),
    Request(temperature=0.7, top_p=0.8),
    Request(temperature=1.5, top_p=0.999),
    Request(temperature=1.0, top_k=1),
    Request(temperature=2.0, top_k=1000),
    Request(temperature=1.0, min_p=0.1),
    Request(temperature=1.3, top_k=50, top_p=0.9, min_p=0.02),
    Request(temperature=1e-40),
    Request(temperature=0.9, top_k=1 << 30, top_p=0.0),
    Request(temperature=-1.0),
]


def rows_of_logits(kind: str, num_rows: int, vocab_size: int) -> np.ndarray:
    rng = np.random.default_rng(vocab_size + num_rows)
    logits = rng.normal(0, 3, (num_rows, vocab_size)).astype(F32)
    match kind:
        case "fp32":
            return logits
        case "bf16":  # many ties
            return (logits.view(np.uint32) & 0xFFFF0000).view(F32)
        case "equal":
            return np.zeros_like(logits)
        case "masked":  # most of a row at -inf, some NaN, both zeros
            logits[rng.random(logits.shape) < 0.9] = -np.inf
            logits[rng.random(logits.shape) < 0.01] = np.nan
            logits[:, rng.integers(0, vocab_size, 4)] = [-0.0, 0.0, -0.0, 0.0]
            return logits
    raise ValueError(kind)


def requests_for(num_rows: int) -> list[Request]:
    """REQUESTS in turn, each row with its own seed and offset."""
    turns = (REQUESTS[i % len(REQUESTS)] for i in range(num_rows))
    return [replace(request, seed=i << 33 | 5, offset=(i << 32) + i) for i, request in enumerate(turns)]


KINDS = ["fp32", "bf16", "equal", "masked"]
SHAPES = [(12, 7), (12, 1000), (24, 4097), (12, 151936), (3, 262144)]


def draw_by_engine(logits: np.ndarray, request: Request) -> int:
    names = ("top_k", "top_p", "min_p", "seed")
    params = SamplingParams(
        temperature=max(request.temperature, 0.0), **{name: getattr(request, name) for name in names}
    )
    return sampling_rule.draw(logits, params, request.offset)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "vocab_size"), SHAPES)
def test_engine_draws_the_tokens_of_the_definition(kind, num_rows, vocab_size):
    logits, requests = rows_of_logits(kind, num_rows, vocab_size), requests_for(num_rows)
    expected = [sample(row, request) for row, request in zip(logits, requests, strict=True)]
    assert [draw_by_engine(row, request) for row, request in zip(logits, requests, strict=True)] == expected


@pytest.mark.parametrize("min_p", [0.0, 1e-11, 0.3, 1.0])
def test_engine_weighs_as_the_definition(min_p):
    """Every weight, where a draw would tell a wrong one only once in 2^40: a million of them, and both sides of -40."""
    border = np.nextafter(F32(-40), [F32(0), F32(-41)])
    t = np.concatenate([[0, -40, -np.inf], border, np.linspace(-41, 0, 1_000_001)]).astype(F32)
    w = sampling_rule.weigh(t, F32(min_p))
    np.testing.assert_array_equal(w, weights(t, F32(1), min_p))
    assert min_p or w[:5].tolist() == [2**40, 1, 0, 1, 0]


def test_engine_draws_the_tokens_of_the_definition_for_any_parameters():
    """2000 rows of up to 3000 logits, with ties, and parameters of every size: nuclei of one token and of thousands."""
    rng = np.random.default_rng(5)
    for _ in range(2000):
        logits = rng.normal(0, rng.choice([0.01, 1, 8]), rng.integers(1, 3000)).astype(F32).round(rng.integers(0, 6))
        top_k = int(rng.choice([0, rng.integers(0, 3000)]))
        min_p, top_p = float(rng.choice([0, rng.random() ** 4])), float(rng.choice([1, rng.random() ** 0.3]))
        temperature, (seed, offset) = float(rng.exponential()), rng.integers(0, 2**63, 2).tolist()
        request = Request(temperature, top_k, top_p, min_p, seed, offset)
        assert draw_by_engine(logits, request) == sample(logits, request), request


class DeviceSampler:
    """The library's sampler over numpy arrays, in memory that torch allocates."""

    def __init__(self, library_path):
        self.torch = pytest.importorskip("torch")
        self.library = KernelLibrary(library_path)

    def tensors(self, logits: np.ndarray, requests: list[Request]):
        columns = {
            name: np.array([getattr(request, name) for request in requests], dtype)
            for name, dtype in [("temperature", F32), ("top_k", np.int32), ("top_p", F32), ("min_p", F32),
                                ("seed", np.uint64), ("offset", np.uint64)]
        }  # fmt: skip
        columns |= {"logits": logits, "token": np.full(len(requests), -1, np.int32)}
        to_device = lambda array: self.torch.from_numpy(array.view(np.uint8).reshape(-1)).cuda()  # noqa: E731
        return {name: to_device(np.ascontiguousarray(column)) for name, column in columns.items()}

    def launcher(self, shape: SampleShape, tensors: dict):
        workspace_size = self.library.workspace_size("sample", shape)
        workspace = self.torch.full((workspace_size,), 0xA5, dtype=self.torch.uint8, device="cuda")
        pointers = SampleTensors(**{name: tensor.data_ptr() for name, tensor in tensors.items()})

        def launch():
            stream = self.torch.cuda.current_stream().cuda_stream
            self.library.run("sample", shape, pointers, workspace.data_ptr(), workspace_size, stream)

        return launch

    def __call__(self, logits: np.ndarray, requests: list[Request]) -> np.ndarray:
        tensors = self.tensors(logits, requests)
        self.launcher(SampleShape(*logits.shape), tensors)()
        return tensors["token"].cpu().numpy().view(np.int32)


@pytest.fixture(scope="module")
def device_sampler(built_library) -> DeviceSampler:
    return DeviceSampler(built_library(KERNELS))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "vocab_size"), SHAPES)
def test_tokens_are_those_of_the_definition(device_sampler, kind, num_rows, vocab_size):
    logits, requests = rows_of_logits(kind, num_rows, vocab_size), requests_for(num_rows)
    expected = [sample(row, request) for row, request in zip(logits, requests, strict=True)]
    assert device_sampler(logits, requests).tolist() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("request_", REQUESTS)
def test_one_row(device_sampler, request_):
    """One row has the most blocks; many draws from it show the distribution's every part."""
    logits = rows_of_logits("bf16", 1, 151936)
    for offset in range(8):
        request = replace(request_, seed=2**64 - 1, offset=2**64 - 1 - offset)
        assert device_sampler(logits, [request]).tolist() == [sample(logits[0], request)]


@pytest.mark.gpu
def test_a_block_a_row(device_sampler):
    """1024 rows: a block each. Every row repeats one of twelve, so that numpy need not sort them all."""
    logits = np.tile(rows_of_logits("fp32", 12, 20000), (86, 1))[:1024]
    requests = requests_for(12) * 86
    expected = [sample(row, request) for row, request in zip(logits[:12], requests[:12], strict=True)]
    assert device_sampler(logits, requests[:1024]).tolist() == (expected * 86)[:1024]


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [2, 100])
def test_replays_in_a_cuda_graph(device_sampler, num_rows):
    """The same addresses, other logits: the graph reads what is there when it runs."""
    torch = device_sampler.torch
    logits, requests = rows_of_logits("bf16", num_rows, 30000), requests_for(num_rows)
    tensors = device_sampler.tensors(np.zeros_like(logits), requests)
    launch = device_sampler.launcher(SampleShape(*logits.shape), tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    tensors["logits"].copy_(torch.from_numpy(logits.view(np.uint8).reshape(-1)))
    expected = [sample(row, request) for row, request in zip(logits, requests, strict=True)]
    for _ in range(3):
        tensors["token"].fill_(255)
        graph.replay()
        assert tensors["token"].cpu().numpy().view(np.int32).tolist() == expected


@pytest.mark.gpu
def test_bad_calls_are_named(device_sampler):
    for shape, message in [((1, 0), "vocab_size"), ((1, (1 << 18) + 1), "vocab_size"), ((-1, 9), "num_rows")]:
        with pytest.raises(KernelError, match=message):
            device_sampler.library.run("sample", SampleShape(*shape), SampleTensors(), 0, 0, 0)
    with pytest.raises(KernelError, match=r"workspace of \d+ bytes, got 0"):
        device_sampler.library.run("sample", SampleShape(1, 151936), SampleTensors(), 0, 0, 0)
    device_sampler.library.run("sample", SampleShape(0, 9), SampleTensors(), 0, 0, 0)
