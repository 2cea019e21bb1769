"""PagedAttention in plain torch, one sequence at a time: the definition in ops.py, spelled out.

Owns: the reference and the batch it is computed on. Must not know the kernels.
T tokens, B sequences, Hq query heads, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GARBAGE_BLOCKS = (-1, 2**31 - 1)  # what unused entries of a block table may hold


@dataclass(frozen=True)
class Batch:
    """Device tensors of one call. `sequences` holds (new tokens, context length) of each sequence."""

    sequences: tuple[tuple[int, int], ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    scale: float
    eps: float
    qkv: torch.Tensor  # [T, (Hq + 2 Hkv) D]
    q_norm_weight: torch.Tensor  # [D]
    k_norm_weight: torch.Tensor  # [D]
    cos_sin_cache: torch.Tensor  # [P, D]
    positions: torch.Tensor  # [T]
    kv_cache: torch.Tensor  # [num_blocks, 2, Hkv, block_size, D]
    block_table: torch.Tensor  # [B, max_blocks]
    cu_seqlens: torch.Tensor  # [B + 1]
    context_lens: torch.Tensor  # [B]

    def slots(self, seq: int, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks and slots of indices begin..end-1 of a sequence."""
        index = torch.arange(begin, end, device=self.block_table.device)
        return self.block_table[seq, index // self.block_size].long(), index % self.block_size


def make_batch(
    sequences: tuple[tuple[int, int], ...],
    *,
    num_heads: int = 8,
    num_kv_heads: int = 2,
    head_dim: int = 128,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    padding: int = 0,
    spare_blocks: int = 5,
    max_blocks: int | None = None,
    seed: int = 0,
    device: str = "cuda",
) -> Batch:
    """Random operands. Blocks are scattered; everything a kernel must not read is NaN or an impossible block number."""
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    num_new = [n for n, _ in sequences]
    num_tokens = sum(num_new) + padding
    blocks = [-(-context // block_size) for _, context in sequences]
    num_blocks = sum(blocks) + spare_blocks
    table = scatter_blocks(blocks, num_blocks, max_blocks or max(blocks) + 3, generator)

    # Rotary positions run ahead of the cache indices: the two are different inputs.
    ahead = 3
    starts = [context - n for n, context in sequences]
    positions = torch.cat(
        [torch.arange(start, start + n) + ahead for start, n in zip(starts, num_new, strict=True)]
        + [torch.full((padding,), -7)]  # of padding tokens: must not be read
    )
    num_positions = max(context for _, context in sequences) + ahead + 1
    qkv = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    qkv[num_tokens - padding :] = torch.nan
    batch = Batch(
        sequences=sequences,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        scale=head_dim**-0.5,
        eps=1e-6,
        qkv=qkv,
        q_norm_weight=1 + randn(head_dim) / 4,
        k_norm_weight=1 + randn(head_dim) / 4,
        cos_sin_cache=rotary_table(num_positions, head_dim, device),
        positions=positions.int().to(device),
        kv_cache=torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), torch.nan, dtype=dtype, device=device),
        block_table=table,
        cu_seqlens=torch.tensor([0, *num_new], device=device).cumsum(0).int(),
        context_lens=torch.tensor([context for _, context in sequences], device=device).int(),
    )
    for seq, start in enumerate(starts):
        block, slot = batch.slots(seq, 0, start)
        batch.kv_cache[block, :, :, slot] = randn(start, 2, num_kv_heads, head_dim)
    return batch


def scatter_blocks(counts: list[int], num_blocks: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """A block table [B, width] in which each sequence has `counts` of the blocks, in random order, and garbage behind.

    The last blocks come into use first, so that spare ones push the used ones to high addresses.
    """
    device = generator.device
    order = num_blocks - 1 - torch.randperm(sum(counts), generator=generator, device=device)
    table = torch.tensor(GARBAGE_BLOCKS, device=device).repeat(len(counts), width)[:, :width]
    for row, blocks in zip(table, order.split(counts), strict=True):
        row[: len(blocks)] = blocks
    return table.int()


def rotary_table(num_positions: int, head_dim: int, device: str) -> torch.Tensor:
    """[num_positions, D]: cosines, then sines."""
    pairs = torch.arange(0, head_dim, 2, device=device).double()
    angles = torch.outer(torch.arange(num_positions, device=device).double(), 1e6 ** -(pairs / head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def norm_and_rotate(x: torch.Tensor, weight: torch.Tensor, cos_sin: torch.Tensor, eps: float) -> torch.Tensor:
    """x [n, heads, D], cos_sin [n, D]. The mean is taken in fp32, all else in x's dtype, as models in 16 bits do."""
    rms = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    x = (x.float() * rms).to(x.dtype) * weight
    cos, sin = cos_sin.to(x.dtype)[:, None].chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def paged_attention(batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """(out [T, Hq, D], new keys of each sequence [n, Hkv, D], new values of each), computed in `dtype`."""
    num_q, num_kv, head_dim = batch.num_heads, batch.num_kv_heads, batch.head_dim
    qkv = batch.qkv.to(dtype).unflatten(1, (num_q + 2 * num_kv, head_dim))
    q_weight, k_weight = batch.q_norm_weight.to(dtype), batch.k_norm_weight.to(dtype)
    out = torch.zeros(qkv.shape[0], num_q, head_dim, dtype=dtype, device=qkv.device)
    new_keys, new_values = [], []
    token = 0
    for seq, (num_new, context_len) in enumerate(batch.sequences):
        rows = slice(token, token + num_new)
        token += num_new
        cos_sin = batch.cos_sin_cache[batch.positions[rows].long()]
        query = norm_and_rotate(qkv[rows, :num_q], q_weight, cos_sin, batch.eps)
        key = norm_and_rotate(qkv[rows, num_q : num_q + num_kv], k_weight, cos_sin, batch.eps)
        value = qkv[rows, num_q + num_kv :]
        new_keys.append(key)
        new_values.append(value)
        if num_new == 0:
            continue

        block, slot = batch.slots(seq, 0, context_len - num_new)
        past = batch.kv_cache[block, :, :, slot].to(dtype)  # [past, 2, Hkv, D]
        keys, values = torch.cat((past[:, 0], key)), torch.cat((past[:, 1], value))
        index = torch.arange(context_len, device=qkv.device)
        unseen = index > index[context_len - num_new :, None]  # [n, context]
        for head in range(num_q):
            kv_head = head // (num_q // num_kv)
            scores = query[:, head] @ keys[:, kv_head].T * batch.scale
            weights = scores.float().masked_fill(unseen, -torch.inf).softmax(-1).to(dtype)
            out[rows, head] = weights @ values[:, kv_head]
    return out, new_keys, new_values
