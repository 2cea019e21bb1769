"""qwen3moe_paged_attention against plain torch, on a GPU.

The library is the built one, or the one that the environment variable QWEN3MOE_KERNELS names. The table of errors is
printed at the end of the session, and written to the path in QWEN3MOE_ATTENTION_TABLE if that is set.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random

import pytest

torch = pytest.importorskip("torch")

from reference_attention import Batch, make_batch, paged_attention  # noqa: E402

from qwen3moe_plugins.kernels import (  # noqa: E402
    BF16,
    FP16,
    KernelError,
    KernelLibrary,
    PagedAttentionShape,
    PagedAttentionTensors,
)
from qwen3moe_plugins.library import KERNELS  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

# |ours - fp32| <= K * |same-dtype torch - fp32| + EPSILONS * eps(dtype) * |fp32|max, of the maxima over a case.
# K = 1, no worse than torch: the kernel rounds queries, keys, probabilities and the output where torch does, but keeps
# scores, softmax and all of QK-norm and RoPE in fp32. Largest error seen on an H200: 0.49 of the allowed.
# The output's own rounding, half an eps of the largest element, stays where torch happens to be exact (one key).
K, EPSILONS = 1.0, 0.5

DTYPE_IDS = {torch.bfloat16: BF16, torch.float16: FP16}


@pytest.fixture(scope="module")
def library(built_library) -> KernelLibrary:
    return KernelLibrary(os.environ.get("QWEN3MOE_KERNELS") or built_library(KERNELS))


@pytest.fixture(scope="module")
def error_table():
    rows: list[str] = []
    yield rows
    header = ["| case | max error | allowed | same-dtype torch |", "|---|---|---|---|"]
    text = "\n".join(header + rows) + "\n"
    print("\n" + text)
    if path := os.environ.get("QWEN3MOE_ATTENTION_TABLE"):
        with open(path, "w") as file:
            file.write(text)


class Call:
    """One call's operands, with output and workspace poisoned anew before each run."""

    def __init__(self, library: KernelLibrary, batch: Batch):
        self.library, self.batch = library, batch
        self.kv_cache = batch.kv_cache.clone()
        num_tokens = batch.qkv.shape[0]
        self.out = torch.empty(
            num_tokens, batch.num_heads * batch.head_dim, dtype=batch.qkv.dtype, device=batch.qkv.device
        )
        self.shape = PagedAttentionShape(
            dtype=DTYPE_IDS[batch.qkv.dtype],
            num_tokens=num_tokens,
            num_seqs=len(batch.sequences),
            num_heads=batch.num_heads,
            num_kv_heads=batch.num_kv_heads,
            head_dim=batch.head_dim,
            num_blocks=batch.kv_cache.shape[0],
            block_size=batch.block_size,
            max_blocks=batch.block_table.shape[1],
            num_positions=batch.cos_sin_cache.shape[0],
            scale=batch.scale,
            eps=batch.eps,
        )
        names = [name for name, _ in PagedAttentionTensors._fields_]
        operands = {name: getattr(batch, name, None) for name in names} | {"kv_cache": self.kv_cache, "out": self.out}
        self.tensors = PagedAttentionTensors(**{name: operands[name].data_ptr() for name in names})
        size = library.workspace_size("paged_attention", self.shape)
        self.workspace = torch.empty(size, dtype=torch.uint8, device=batch.qkv.device)

    def poison(self) -> None:
        self.kv_cache.copy_(self.batch.kv_cache)
        self.out.fill_(torch.nan)
        self.workspace.fill_(0xFF)

    def launch(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        workspace = self.workspace
        self.library.run("paged_attention", self.shape, self.tensors, workspace.data_ptr(), workspace.numel(), stream)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.poison()
        self.launch()
        torch.cuda.synchronize()
        return self.out.clone(), self.kv_cache.clone()


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16)


def check_cache(batch: Batch, kv_cache: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """New keys are fp32's rounded once, new values copies, everything else as it was, bit for bit."""
    untouched = torch.ones(kv_cache.shape[0], batch.block_size, dtype=torch.bool, device=kv_cache.device)
    half_eps = torch.finfo(kv_cache.dtype).eps / 2
    for seq, (num_new, context_len) in enumerate(batch.sequences):
        block, slot = batch.slots(seq, context_len - num_new, context_len)
        untouched[block, slot] = False
        key, value = kv_cache[block, 0, :, slot], kv_cache[block, 1, :, slot]
        assert torch.equal(bits(value.contiguous()), bits(values[seq].to(value.dtype))), f"values of sequence {seq}"
        # 1e-5 covers fp32's own error where a rotated element cancels.
        assert torch.all((key.float() - keys[seq]).abs() <= half_eps * keys[seq].abs() + 1e-5), f"keys of {seq}"
    changed = bits(kv_cache).ne(bits(batch.kv_cache)).any(dim=4).any(dim=2).any(dim=1)  # [num_blocks, block_size]
    assert not torch.any(changed & untouched), "a slot outside the new tokens was written"


def check(batch: Batch, out: torch.Tensor, kv_cache: torch.Tensor, name: str, table: list[str]) -> None:
    truth, keys, values = paged_attention(batch, torch.float32)
    same_dtype, _, _ = paged_attention(batch, batch.qkv.dtype)
    num_real = sum(n for n, _ in batch.sequences)
    ours = out.float().unflatten(1, (batch.num_heads, batch.head_dim))
    assert torch.all(bits(out[num_real:]) == 0), "padding rows are zero"
    check_cache(batch, kv_cache, keys, values)

    assert not torch.isnan(ours).any(), "NaN in the output"
    if num_real == 0:
        return
    error = (ours[:num_real] - truth[:num_real]).abs().max().item()
    torch_error = (same_dtype[:num_real].float() - truth[:num_real]).abs().max().item()
    allowed = K * torch_error + EPSILONS * torch.finfo(out.dtype).eps * truth[:num_real].abs().max().item()
    table.append(f"| {name} | {error:.2e} | {allowed:.2e} | {torch_error:.2e} |")
    assert error <= allowed


def check_batch(library: KernelLibrary, batch: Batch, name: str, table: list[str]) -> None:
    call = Call(library, batch)
    out, kv_cache = call.run()
    check(batch, out, kv_cache, name, table)
    again, kv_again = call.run()
    assert torch.equal(bits(out), bits(again)) and torch.equal(bits(kv_cache), bits(kv_again)), "bits vary"


MIXTURES = {
    "one_token": ((1, 1),),
    "decode": ((1, 1), (1, 17), (1, 333), (1, 1000), (1, 64)),
    "decode_with_empty": ((0, 0), (1, 40), (0, 55), (1, 129), (0, 0)),
    "decode_of_16": tuple((1, 37 * i + 1) for i in range(16)),
    "decode_of_40": tuple((1, 61 * i % 997 + 1) for i in range(40)),
    "only_empty": ((0, 0), (0, 33)),
    "few_new": ((2, 2), (3, 90), (4, 4), (8, 700), (5, 16)),
    "short_prompt_among_empty": ((0, 0),) * 20 + ((19, 130),) + ((0, 9),) * 20,
    "one_prompt": ((300, 701),),
    "one_with_few_new": ((3, 90),),  # the decode kernel's without padding, else the prefill kernel's
    "prefill": ((77, 77), (130, 130), (1, 1), (64, 64)),
    "chunked": ((45, 300), (129, 1025), (16, 500)),
    "mixed": ((1, 511), (70, 70), (0, 12), (33, 400), (1, 1), (2, 18), (0, 0), (201, 260), (1, 2049)),
    "block_bounds": tuple((1, c) for c in (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)),
    "block_bounds_prefill": tuple((c, c) for c in (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)),
}


@pytest.mark.parametrize("padding", [0, 37])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixture(library, error_table, name, padding):
    batch = make_batch(MIXTURES[name], padding=padding)
    check_batch(library, batch, f"{name}, padding {padding}", error_table)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", [*MIXTURES, "long"])
def test_same_bits(library, name, head_dim):
    """No torch arithmetic: what compute-sanitizer's racecheck can run (it crashes in cuBLAS, which the others call)."""
    sequences = MIXTURES.get(name, ((1, 3000), (2, 2000), (64, 900)))
    call = Call(library, make_batch(sequences, head_dim=head_dim, padding=3))
    first, second = call.run(), call.run()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))


def test_many_launches(library):
    """A CTA that ends while its cluster peer still signals it fails one launch of some thousands."""
    call = Call(library, make_batch(((512, 512),), num_heads=32, num_kv_heads=4))
    expected, _ = call.run()
    for _ in range(4000):
        call.launch()
    torch.cuda.synchronize()
    assert torch.equal(bits(call.out), bits(expected))


HEADS = [(1, 1), (2, 1), (6, 2), (8, 2), (5, 1), (6, 1), (14, 2), (8, 1), (12, 1), (13, 1), (16, 1), (32, 4), (9, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_heads, num_kv_heads", HEADS)
def test_heads(library, error_table, num_heads, num_kv_heads, head_dim, dtype):
    batch = make_batch(
        MIXTURES["mixed"], num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype, padding=3
    )
    name = f"mixed, {num_heads}/{num_kv_heads} heads of {head_dim}, {str(dtype)[6:]}"
    check_batch(library, batch, name, error_table)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("name", ["mixed", "block_bounds", "block_bounds_prefill"])
def test_block_size(library, error_table, name, block_size, head_dim):
    batch = make_batch(MIXTURES[name], block_size=block_size, head_dim=head_dim, num_heads=4, num_kv_heads=1)
    check_batch(library, batch, f"{name}, blocks of {block_size}, heads of {head_dim}", error_table)


@pytest.mark.parametrize("seed", range(6))
def test_random_mixture(library, error_table, seed):
    draw = random.Random(seed)
    sequences = []
    for _ in range(draw.randint(1, 70)):
        num_new = draw.choice([0, 1, 1, 1, 2, 5, draw.randint(1, 300)])
        sequences.append((num_new, num_new + draw.choice([0, draw.randint(0, 100), draw.randint(0, 3000)])))
    ratio, num_kv_heads = draw.randint(1, 16), draw.randint(1, 3)
    batch = make_batch(
        tuple(sequences),
        num_heads=ratio * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw.choice([64, 128]),
        block_size=draw.choice([16, 32, 64]),
        dtype=draw.choice([torch.bfloat16, torch.float16]),
        padding=draw.randint(0, 9),
        seed=seed,
    )
    check_batch(library, batch, f"random mixture {seed}: {len(sequences)} sequences, ratio {ratio}", error_table)


@pytest.mark.parametrize("num_new", [1, 3, 100])
def test_longest_context(library, error_table, num_new):
    batch = make_batch(((num_new, 262144), (1, 77)), num_heads=4, num_kv_heads=1)
    check_batch(library, batch, f"{num_new} new in a context of 262144", error_table)


def test_large_prefill(library, error_table):
    batch = make_batch(((2500, 2500), (1500, 3001)), num_heads=16, num_kv_heads=2, block_size=32)
    check_batch(library, batch, "prefill 2500 + 1500 of 3001, tiles of 128 rows", error_table)


def test_cache_beyond_32_bits(library, error_table):
    block_elements = 2 * 4 * 16 * 128
    batch = make_batch(((1, 300), (90, 200)), num_heads=8, num_kv_heads=4, spare_blocks=2**31 // block_elements)
    assert batch.block_table.max().item() == 2**31 - 1  # an unused entry
    assert batch.kv_cache.numel() > 2**31
    check_batch(library, batch, "cache of more than 2^31 elements", error_table)


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}


def batches_of_one_shape(*mixtures: tuple[tuple[int, int], ...]) -> list[Batch]:
    """Batches that differ in lengths and contents alone."""
    used = [sum(-(-context // 16) for _, context in sequences) for sequences in mixtures]
    batches = [
        make_batch(sequences, spare_blocks=max(used) + 4 - blocks, max_blocks=256)
        for sequences, blocks in zip(mixtures, used, strict=True)
    ]
    longest = max((batch.cos_sin_cache for batch in batches), key=len)
    return [dataclasses.replace(batch, cos_sin_cache=longest) for batch in batches]


@pytest.mark.parametrize(
    "captured, replayed",
    [
        (((1, 900), (1, 5), (1, 64)), ((1, 1), (0, 40), (2, 3000))),
        (((100, 100), (1, 50), (3, 4)), ((1, 2000), (0, 0), (103, 900))),
    ],
    ids=["decode", "mixed"],
)
def test_graph_replay(library, error_table, captured, replayed):
    first, second = batches_of_one_shape(captured, replayed)
    operands = dataclasses.replace(first, **{name: x.clone() for name, x in tensors_of(first).items()})
    call = Call(library, operands)
    call.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.launch()
    for batch in (second, first, second):
        for name, x in tensors_of(batch).items():
            getattr(operands, name).copy_(x)
        call.poison()
        graph.replay()
        torch.cuda.synchronize()
        check(batch, call.out, call.kv_cache, f"graph replay, {batch.sequences}", error_table)


def test_no_tokens(library):
    call = Call(library, make_batch(((1, 20),)))
    call.poison()
    call.shape.num_tokens = 0
    assert library.workspace_size("paged_attention", call.shape) == 0
    call.launch()
    torch.cuda.synchronize()
    assert torch.isnan(call.out).all()
    assert torch.equal(bits(call.kv_cache), bits(call.batch.kv_cache))


@pytest.mark.parametrize(
    "field, value",
    [
        ("dtype", 2),
        ("num_tokens", -1),
        ("num_seqs", 0),
        ("num_heads", 7),
        ("num_heads", 34),
        ("num_kv_heads", 0),
        ("head_dim", 96),
        ("block_size", 24),
        ("max_blocks", 0),
        ("num_blocks", 0),
        ("num_positions", 0),
        ("scale", 0.0),
        ("scale", float("nan")),
        ("eps", -1.0),
    ],
)
def test_refuses_shape(library, field, value):
    call = Call(library, make_batch(((1, 20),)))
    setattr(call.shape, field, value)
    with pytest.raises(KernelError, match=r"status 1: .*expected"):
        call.launch()


@pytest.mark.parametrize("name", [name for name, _ in PagedAttentionTensors._fields_])
def test_refuses_null_tensor(library, name):
    call = Call(library, make_batch(((1, 20),)))
    setattr(call.tensors, name, ctypes.c_void_p(None))
    with pytest.raises(KernelError, match=rf"status 1: .*{name}"):
        call.launch()


def test_refuses_small_workspace(library):
    call = Call(library, make_batch(((1, 20),)))
    call.workspace = call.workspace[:-1]
    with pytest.raises(KernelError, match=r"status 2: .*AttentionPlan"):
        call.launch()
