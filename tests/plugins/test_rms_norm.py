"""RMSNorm and AddRMSNorm against plain torch, and the pseudo-random fill against its definition."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qwen3moe_plugins.kernels import (  # noqa: E402
    BF16,
    FP16,
    FillShape,
    FillTensors,
    KernelError,
    KernelLibrary,
    RMSNormShape,
    RMSNormTensors,
)
from qwen3moe_plugins.library import KERNELS  # noqa: E402

pytestmark = pytest.mark.gpu

EPS = 1e-6
SIZES = [(1, 8), (3, 128), (65, 2048), (2, 2056), (7, 6144), (5, 16384)]
DTYPES = {torch.bfloat16: BF16, torch.float16: FP16}
# Ours rounds once where torch, norm and product apart, rounds twice: half an ulp less, so the same allowance is enough.
FACTOR = 1.0


@pytest.fixture(scope="module")
def kernels(built_library) -> KernelLibrary:
    return KernelLibrary(built_library(KERNELS))


def reference(x, weight):
    """In x's dtype, as transformers rounds."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return normed.to(x.dtype) * weight


def run(kernels, x, residual, weight):
    """out and, with a residual, residual_out; both poisoned first."""
    out, residual_out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    shape = RMSNormShape(DTYPES[x.dtype], x.shape[0], x.shape[1], EPS)
    pointers = [x, residual, weight, out, residual_out if residual is not None else None]
    tensors = RMSNormTensors(*(None if tensor is None else tensor.data_ptr() for tensor in pointers))
    kernels.run("rms_norm", shape, tensors, 0, 0, torch.cuda.current_stream().cuda_stream)
    return out, residual_out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size"), [(1, 8), (3, 128), (65, 2048), (2, 2056), (7, 6144), (5, 16384)]
)
def test_against_torch(kernels, dtype, has_residual, num_tokens, hidden_size):
    generator = torch.Generator("cuda").manual_seed(hidden_size + num_tokens)
    x, residual = (
        torch.randn(num_tokens, hidden_size, generator=generator, device="cuda").mul(3).to(dtype) for _ in range(2)
    )
    weight = torch.rand(hidden_size, generator=generator, device="cuda").to(dtype)
    total = x + residual if has_residual else x
    truth = reference(total.float(), weight.float())
    loss = (reference(total, weight).float() - truth).abs().max()
    out, residual_out = run(kernels, x, residual if has_residual else None, weight)
    again, _ = run(kernels, x, residual if has_residual else None, weight)
    half_ulp = truth.abs().max() * torch.finfo(dtype).eps / 2
    assert (out.float() - truth).abs().max() <= FACTOR * loss + half_ulp
    assert torch.equal(out, again)
    if has_residual:
        assert torch.equal(residual_out, total)


def test_bad_shapes_are_refused(kernels):
    for shape in (RMSNormShape(BF16, 1, 12, EPS), RMSNormShape(BF16, 1, 16392, EPS), RMSNormShape(7, 1, 64, EPS)):
        with pytest.raises(KernelError):
            kernels.run("rms_norm", shape, RMSNormTensors(1, None, 1, 1, None), 0, 0, 0)


def splitmix64(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@pytest.mark.parametrize(
    ("rows", "columns", "row_stride", "first"), [(1, 1_000_003, 1_000_003, 0), (700, 300, 900, 0), (3, 5, 64, 128 + 17)]
)
def test_fill_is_splitmix64_of_seed_and_index(kernels, rows, columns, row_stride, first):
    """Of a whole matrix, and of columns of some of its rows."""
    seed, low, high = (7 << 32) + 5, -0.25, 0.5
    values = torch.full((rows, columns), torch.nan, dtype=torch.float16, device="cuda")
    shape = FillShape(rows * columns, columns, row_stride, first, seed, FP16, low, high)
    kernels.run("fill", shape, FillTensors(values.data_ptr()), 0, 0, torch.cuda.current_stream().cuda_stream)
    elements = first + np.arange(rows)[:, None] * row_stride + np.arange(columns)
    with np.errstate(over="ignore"):
        bits = splitmix64(splitmix64(np.array(seed, np.uint64)) + elements.astype(np.uint64)) >> np.uint64(40)
    expected = low + (high - low) * (bits.astype(np.float64) * 2.0**-24)
    assert np.abs(values.cpu().numpy() - expected).max() <= 2.0**-11 * 0.5  # half an ulp of fp16 below 0.5, and fp32's
