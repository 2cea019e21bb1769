"""qwen3moe_moe against plain torch.

The truth is fp32 arithmetic on the same 16-bit inputs. How far a 16-bit implementation may stray from it is not guessed
but measured: plain torch in the 16-bit dtype rounds after each product, after SwiGLU, after each weighting and at the
end; ours rounds the activation and the result only. So, in the maximum norm over a call,

    |ours - truth| <= K * |same-dtype torch - truth| + eps,   K = 1.5, eps = half a unit in the last place of max|truth|

where K covers the luck of a maximum over few tokens, and eps the last rounding, which no 16-bit result escapes.
Routing, untouched rows and repeated runs are exact.

Legend: T tokens, E experts, E_local experts held, k top_k, H hidden size, I expert width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import pytest

torch = pytest.importorskip("torch")

from qwen3moe_plugins.kernels import BF16, FP16, KernelError, KernelLibrary, MoEShape, MoETensors  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

K = 1.5
HALF_ULP = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
DTYPES = [torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Model:
    """The sizes of one MoE layer."""

    E: int
    k: int
    H: int
    I: int  # noqa: E741
    E_local: int | None = None
    norm_topk_prob: bool = True

    @property
    def num_local(self) -> int:
        return self.E if self.E_local is None else self.E_local


TINY = Model(16, 4, 128, 64)
QWEN3_30B = Model(128, 8, 2048, 768)
QWEN3_235B = Model(128, 8, 4096, 1536)
QWEN3_480B = Model(160, 8, 6144, 2560)
MANY_EXPERTS = Model(512, 16, 256, 64)
ODD_COLUMNS = Model(10, 3, 192, 320)
NARROW = [Model(16, 4, 64, 32), Model(128, 8, 2048, 96), Model(12, 2, 128, 40)]  # parts of an expert

TOKENS = [1, 2, 3, 7, 8, 16, 17, 64, 65, 127, 300, 2048, 65536]
GRID = (
    [(model, T) for model in (TINY, MANY_EXPERTS, ODD_COLUMNS, QWEN3_30B) for T in TOKENS]
    + [(model, T) for model in NARROW for T in (1, 3, 17, 65, 300, 2048)]
    + [(model, T) for model in (QWEN3_235B, QWEN3_480B) for T in (1, 3, 4, 17, 65)]
)  # fmt: skip


# The reference, and the same arithmetic in a 16-bit dtype.


def reference_routing(logits, k, norm_topk_prob):
    """weights [T, k] in fp32 and experts [T, k]; a stable sort puts the lower index first among equals."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    experts = torch.sort(probabilities, dim=-1, descending=True, stable=True).indices[:, :k]
    weights = torch.gather(probabilities, 1, experts)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


def reference_moe(hidden, logits, gate_up, down, expert_map, model, dtype):
    """Expert by expert, every operation in `dtype`; the sum over experts in fp32."""
    weights, experts = reference_routing(logits, model.k, model.norm_topk_prob)
    x = hidden.to(dtype)
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert, slot in enumerate(expert_map.tolist()):
        token, choice = torch.where(experts == expert)
        if slot < 0 or len(token) == 0:
            continue
        gate, up = (x[token] @ gate_up[slot].to(dtype).T).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ down[slot].to(dtype).T
        out[token] += (y * weights[token, choice, None].to(dtype)).float()
    return out.to(dtype)


# Our kernel, on poisoned memory.


@lru_cache(maxsize=1)
def library() -> KernelLibrary:
    return KernelLibrary(os.environ["QWEN3MOE_KERNELS"])


def make_shape(model, T, dtype):
    return MoEShape(
        dtype=BF16 if dtype == torch.bfloat16 else FP16,
        num_tokens=T,
        hidden_size=model.H,
        intermediate_size=model.I,
        num_experts=model.E,
        num_local_experts=model.num_local,
        top_k=model.k,
        norm_topk_prob=int(model.norm_topk_prob),
    )


class Call:
    """One bound call: inputs, an output full of NaN, scratch memory full of 0xFF."""

    def __init__(self, model, hidden, logits, gate_up, down, expert_map):
        self.shape = make_shape(model, len(hidden), hidden.dtype)
        self.out = torch.full_like(hidden, float("nan"))
        size = library().workspace_size("moe", self.shape)
        self.workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")
        self.inputs = (hidden, logits, gate_up, down, expert_map)
        self.tensors = MoETensors(*(tensor.data_ptr() for tensor in (*self.inputs, self.out)))

    def __call__(self):
        stream = torch.cuda.current_stream().cuda_stream
        library().run("moe", self.shape, self.tensors, self.workspace.data_ptr(), len(self.workspace), stream)
        return self.out


def run_moe(model, *inputs):
    return Call(model, *inputs)().clone()


# Inputs.


@lru_cache(maxsize=1)
def make_weights(num_slots, H, I, dtype):  # noqa: E741
    generator = torch.Generator("cuda").manual_seed(1)
    gate_up = torch.empty(num_slots, 2 * I, H, dtype=dtype, device="cuda").normal_(0, H**-0.5, generator=generator)
    down = torch.empty(num_slots, H, I, dtype=dtype, device="cuda").normal_(0, I**-0.5, generator=generator)
    return gate_up, down


def make_tokens(model, T, dtype, seed=2):
    generator = torch.Generator("cuda").manual_seed(seed)
    hidden = torch.randn(T, model.H, dtype=dtype, device="cuda", generator=generator)
    logits = torch.randn(T, model.E, dtype=dtype, device="cuda", generator=generator)
    return hidden, logits


def identity_map(model):
    return torch.arange(model.E, dtype=torch.int32, device="cuda")


@pytest.fixture(scope="module")
def report(request):
    """Rows (case, max error, allowed, same-dtype torch's error), printed once at the end."""
    rows = []
    yield rows
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{'case':58} {'max err':>9} {'allowed':>9} {'torch err':>9}")
        for case, error, allowed, torch_error in rows:
            print(f"{case:58} {error:9.2e} {allowed:9.2e} {torch_error:9.2e}")


def check(report, name, model, hidden, logits, gate_up, down, expert_map):
    inputs = (hidden, logits, gate_up, down, expert_map)
    call = Call(model, *inputs)
    ours = call().clone()
    assert torch.isfinite(ours).all(), f"{int((~torch.isfinite(ours)).sum())} elements were not written"
    truth = reference_moe(*inputs, model, torch.float32)
    torch_error = (reference_moe(*inputs, model, hidden.dtype).float() - truth).abs().max().item()
    error = (ours.float() - truth).abs().max().item()
    allowed = K * torch_error + HALF_ULP[hidden.dtype] * truth.abs().max().item()
    case = f"{name} {str(hidden.dtype)[6:]} T={len(hidden)} E={model.E} k={model.k} H={model.H} I={model.I}"
    report.append((case, error, allowed, torch_error))
    assert error <= allowed
    call.out.fill_(float("nan"))
    call.workspace.fill_(0xFF)
    assert torch.equal(call(), ours), "a second run gave other bits"


# Tests.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model, T", GRID, ids=lambda value: str(value) if isinstance(value, int) else f"H{value.H}")
def test_uniform_routing(report, model, T, dtype):
    weights = make_weights(model.E, model.H, model.I, dtype)
    check(report, "uniform", model, *make_tokens(model, T, dtype), *weights, identity_map(model))


@pytest.mark.parametrize("T", [1, 3, 17, 127, 2048])
@pytest.mark.parametrize("routing", ["one", "few", "equal", "infinite", "unnormalised"])
def test_routing_extremes(report, routing, T):
    model = QWEN3_30B
    if routing == "unnormalised":
        model = Model(model.E, model.k, model.H, model.I, norm_topk_prob=False)
    hidden, logits = make_tokens(model, T, torch.bfloat16)
    if routing == "one":  # the same k experts for every token
        logits = logits[:1].expand(T, -1).contiguous()
    elif routing == "few":  # most experts without tokens
        logits[:, 20:] -= 100
    elif routing == "equal":
        logits.fill_(0.5)
    elif routing == "infinite":  # fewer finite logits than choices
        logits[:, 5:] = float("-inf")
    weights = make_weights(model.E, model.H, model.I, torch.bfloat16)
    check(report, routing, model, hidden, logits, *weights, identity_map(model))


@pytest.mark.parametrize("T", [1, 4, 17, 300, 2048])
@pytest.mark.parametrize("held", ["half", "permuted", "none", "spare"])
def test_expert_map(report, held, T):
    E = 32
    order = torch.randperm(E, generator=torch.Generator().manual_seed(3)).to(torch.int32)
    num_slots = {"half": E // 2, "permuted": E, "none": 2, "spare": E + 9}[held]
    expert_map = {
        "half": torch.where(order < E // 2, order, -1),
        "permuted": order,
        "none": torch.full((E,), -1, dtype=torch.int32),
        "spare": order + 9,
    }[held].cuda()
    model = Model(E, 4, 512, 192, E_local=num_slots)
    weights = make_weights(num_slots, model.H, model.I, torch.bfloat16)
    check(report, held, model, *make_tokens(model, T, torch.bfloat16), *weights, expert_map)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [1, 3, 70, 1000])
@pytest.mark.parametrize("E, k", [(1, 1), (7, 7), (128, 8), (160, 8), (512, 16)])
def test_routing_is_exact(E, k, T, dtype):
    """Expert e writes 1 to column e alone, so the output's non-zero columns are the chosen experts."""
    model = Model(E, k, 512, 64, norm_topk_prob=True)
    hidden = torch.full((T, model.H), 1 / model.H, dtype=dtype, device="cuda")
    generator = torch.Generator("cuda").manual_seed(4)
    logits = torch.randint(-9, 10, (T, E), device="cuda", generator=generator).to(dtype) / 4  # many ties
    gate_up = torch.ones(E, 2 * model.I, model.H, dtype=dtype, device="cuda")
    down = torch.zeros(E, model.H, model.I, dtype=dtype, device="cuda")
    down[torch.arange(E), torch.arange(E)] = 1
    out = run_moe(model, hidden, logits, gate_up, down, identity_map(model))
    _, experts = reference_routing(logits, k, True)
    chosen = torch.zeros(T, model.H, dtype=torch.bool, device="cuda").scatter_(1, experts, True)
    assert torch.equal(out != 0, chosen)


@pytest.mark.parametrize("T", [2, 50, 1000])
def test_nan_logits_stay_in_their_rows(T):
    model = TINY
    hidden, logits = make_tokens(model, T, torch.bfloat16)
    weights = make_weights(model.E, model.H, model.I, torch.bfloat16)
    clean = run_moe(model, hidden, logits, *weights, identity_map(model))
    logits[0] = float("nan")
    out = run_moe(model, hidden, logits, *weights, identity_map(model))
    assert torch.equal(out[1:], clean[1:])


@pytest.mark.parametrize("T", [1, 8, 200, 20000])
def test_graph_replay_with_other_inputs(T):
    model = TINY
    weights = make_weights(model.E, model.H, model.I, torch.bfloat16)
    inputs = make_tokens(model, T, torch.bfloat16)
    call = Call(model, *inputs, *weights, identity_map(model))
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for seed in (5, 6):
        fresh = make_tokens(model, T, torch.bfloat16, seed)
        for mine, new in zip(inputs, fresh, strict=True):
            mine.copy_(new)
        graph.replay()
        assert torch.equal(call.out, run_moe(model, *fresh, *weights, identity_map(model)))


def test_workspace_grows_with_tokens():
    sizes = [library().workspace_size("moe", make_shape(QWEN3_30B, T, torch.bfloat16)) for T in range(0, 20000, 7)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("dtype", 2, "dtype"),
        ("num_tokens", -1, "num_tokens"),
        ("hidden_size", 96, "hidden_size"),
        ("intermediate_size", 0, "intermediate_size"),
        ("intermediate_size", 36, "intermediate_size"),
        ("num_experts", 513, "num_experts"),
        ("num_local_experts", 0, "num_local_experts"),
        ("top_k", 17, "top_k"),
        ("norm_topk_prob", 2, "norm_topk_prob"),
    ],
)
def test_invalid_shape_is_named(field, value, message):
    shape = make_shape(TINY, 4, torch.bfloat16)
    setattr(shape, field, value)
    with pytest.raises(KernelError, match=message):
        library().run("moe", shape, MoETensors(), 0, 0, 0)
    assert library().workspace_size("moe", shape) == 0


def test_missing_memory_is_named():
    inputs = make_tokens(TINY, 4, torch.bfloat16)
    call = Call(TINY, *inputs, *make_weights(TINY.E, TINY.H, TINY.I, torch.bfloat16), identity_map(TINY))
    with pytest.raises(KernelError, match="workspace"):
        library().run("moe", call.shape, call.tensors, call.workspace.data_ptr(), 16, 0)
    call.tensors.down = None
    with pytest.raises(KernelError, match="down is null"):
        call()


def test_no_tokens_is_success():
    shape = make_shape(TINY, 0, torch.bfloat16)
    library().run("moe", shape, MoETensors(), 0, 0, 0)
