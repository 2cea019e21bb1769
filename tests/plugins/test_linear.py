"""Linear against plain torch in fp32, on both of its paths: our kernel for few tokens, and cuBLASLt."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from qwen3moe_plugins.kernels import BF16, FP16, KernelError, KernelLibrary, LinearShape, LinearTensors  # noqa: E402
from qwen3moe_plugins.library import KERNELS, load_cublaslt  # noqa: E402

pytestmark = pytest.mark.gpu

DTYPES = {torch.bfloat16: BF16, torch.float16: FP16}
# Both round the fp32 sum once; their sums differ in order only.
FACTOR = 2.0

# In and out features of Qwen3-30B-A3B's products, and sizes that are no multiple of a tile, a chunk or a vector.
SIZES = [(2048, 5120), (4096, 2048), (2048, 128), (2048, 9000), (1024, 48), (6144, 2048), (4104, 40), (264, 24), (8, 8)]
TOKENS = [1, 7, 8, 9, 16, 17, 300]


@pytest.fixture(scope="module")
def kernels(built_library) -> KernelLibrary:
    load_cublaslt()
    return KernelLibrary(os.environ.get("QWEN3MOE_KERNELS") or built_library(KERNELS))


def run(kernels, x, weight, out_float32):
    """out, poisoned first, with a guard row behind it that must stay."""
    shape = LinearShape(DTYPES[x.dtype], int(out_float32), *x.shape, len(weight))
    out = torch.full(
        (len(x) + 1, len(weight)), torch.nan, device="cuda", dtype=torch.float32 if out_float32 else x.dtype
    )
    size = kernels.workspace_size("linear", shape)
    workspace = torch.full((max(size, 1),), 255, dtype=torch.uint8, device="cuda")
    tensors = LinearTensors(x.data_ptr(), weight.data_ptr(), out.data_ptr())
    torch.cuda.synchronize()
    kernels.run("linear", shape, tensors, workspace.data_ptr(), size, torch.cuda.current_stream().cuda_stream)
    assert out[-1].isnan().all()
    return out[:-1]


@pytest.mark.parametrize("out_float32", [False, True], ids=["rounded", "float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_against_torch(kernels, dtype, in_features, out_features, out_float32):
    generator = torch.Generator("cuda").manual_seed(in_features + out_features)
    weight = torch.randn(out_features, in_features, generator=generator, device="cuda").to(dtype)
    for num_tokens in TOKENS:
        x = torch.randn(num_tokens, in_features, generator=generator, device="cuda").to(dtype)
        truth = torch.nn.functional.linear(x.double(), weight.double())
        loss = (torch.nn.functional.linear(x, weight).double() - truth).abs().max()
        out = run(kernels, x, weight, out_float32)
        error = (out.double() - truth).abs().max()
        half_ulp = truth.abs().max() * torch.finfo(dtype).eps / 2
        assert error <= (FACTOR * loss + half_ulp if not out_float32 else half_ulp / 16), (num_tokens, error, loss)
        assert torch.equal(out, run(kernels, x, weight, out_float32)), num_tokens


@pytest.mark.parametrize("num_tokens", [1, 8, 13])
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 2048), (2048, 128), (1024, 48)])
def test_same_bits(kernels, in_features, out_features, num_tokens):
    """Our own kernel and no torch product: what compute-sanitizer can run (it crashes in cuBLAS)."""
    weight = torch.rand(out_features, in_features, device="cuda").bfloat16()
    x = torch.rand(num_tokens, in_features, device="cuda").bfloat16()
    first, second = (run(kernels, x, weight, True) for _ in range(2))
    assert torch.equal(first, second) and not first.isnan().any()


@pytest.mark.parametrize("num_tokens", [1, 16, 200])
def test_replays_as_a_graph(kernels, num_tokens):
    """Captured after one run, replayed on other tokens."""
    x = torch.randn(num_tokens, 2048, device="cuda").bfloat16()
    weight = torch.randn(512, 2048, device="cuda").bfloat16()
    shape = LinearShape(BF16, 0, num_tokens, 2048, 512)
    out = torch.empty(num_tokens, 512, dtype=torch.bfloat16, device="cuda")
    size = kernels.workspace_size("linear", shape)
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
    tensors = LinearTensors(x.data_ptr(), weight.data_ptr(), out.data_ptr())
    run(kernels, x, weight, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.run("linear", shape, tensors, workspace.data_ptr(), size, torch.cuda.current_stream().cuda_stream)
    x.normal_()
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, run(kernels, x, weight, False))


def test_bad_shapes_are_refused(kernels):
    tensors = LinearTensors(16, 16, 16)
    bad = [(7, 0, 1, 64, 64), (BF16, 2, 1, 64, 64), (BF16, 0, -1, 64, 64), (BF16, 0, 1, 0, 64), (BF16, 0, 1, 64, 60)]
    for fields in bad:
        with pytest.raises(KernelError):
            kernels.run("linear", LinearShape(*fields), tensors, 0, 0, 0)
    with pytest.raises(KernelError, match="33554432 bytes of workspace"):
        kernels.run("linear", LinearShape(BF16, 0, 300, 64, 64), tensors, 0, 0, 0)
    with pytest.raises(KernelError, match="% kPointerAlignment"):
        kernels.run("linear", LinearShape(BF16, 0, 1, 64, 64), LinearTensors(16, 8, 16), 0, 0, 0)
