// What one call of PagedAttention launches, decided on the host from shapes alone: lengths live on the device, so that
// a captured graph can be replayed with others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>

#include "qwen3moe/kernels.h"

namespace qwen3moe {

// Decode: 16 query rows (the M of mma.m16n8k16) of one sequence and key/value head, over a range of keys.
struct DecodeConfig {
    static constexpr int kRows = 16;
    // Each warp streams tiles of its own, so warps meet only at the end. 4 warps * 2 stages * 16 keys * (K + V) * 128 *
    // 2 bytes = 64 KB, with the queries 68 KB: three CTAs on an H100's 227 KB, one on the 99 KB of sm_86, 89 and 120.
    // Three CTAs keep 96 KB in flight where 4.8 TB/s * 0.8 us / 132 SMs = 29 KB would do.
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kStages = 2;
    static constexpr int kKeys = 16;
    // Keys are dealt to splits in units of one tile per warp.
    static constexpr int kUnit = kWarps * kKeys;
    // A sequence with more rows than four tiles reads its keys too often; the prefill kernel reads them once per 64
    // rows, that for sm_90a once per 256.
    static constexpr int kMaxRowTiles = 4;
    // CTAs wanted over all sequences and heads: one for each SM of an H100; row tiles that do not divide evenly add up
    // to one each. Twice as many cost an H200 33 us of 283 at 64 sequences of 8192 (512 CTAs, 396 at a time: the last
    // third of the time a third of them runs) and 3 us of 19 at one of 8192, and gain 1.5 us of 15 at 8 of 1024. Fixed,
    // because plans are made without a GPU.
    static constexpr int kTargetCtas = 132;
    // Fewer than 128 keys per CTA gain nothing; 256 cost 2.6 us of 12.8 at one sequence of 1024 (H200).
    static constexpr int kMinUnits = 2;
    // A decode step of few sequences splits each over a cluster of 16 CTAs, or the most that let all of them run at
    // once.
    static constexpr int kMaxClusterSplits = 16;
    static constexpr int kMinClusterSplits = 4;
    static constexpr int kMaxClusterCtas = 264;
    static constexpr int kMaxClusterSeqs = 32;  // a warp looks them through
    // The most keys that a sequence may have there: a longer one is for more CTAs than a cluster, and its length is
    // known on the device alone.
    static constexpr int kMaxClusterKeys = 16384;
};

// Prefill before and after Hopper, whose own has one shape (attention_prefill_hopper.cu): FlashAttention-2's. Each warp
// holds 16 or 32 rows; 32 halve the shared-memory reads per product (at 16 the 128 bytes per clock of shared memory,
// not the tensor cores, would be the limit) and take all 255 registers.
struct PrefillConfig {
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kKeys = 64;
    // Tiles of keys and of values alternate in one ring: 32 KB of queries + 3 * 16 KB = 80 KB at D = 128, two CTAs on
    // an H100 and one within the 99 KB of sm_86, 89 and 120. 8192 tokens on an H200: 1.67 ms with 2 or 3 stages, a
    // sixth more with 4, which leave little of the L1; a sixth more with tiles of 32 keys.
    static constexpr int kStages = 3;
    static constexpr int kHopperRows = 256;  // of a cluster of two CTAs, 128 each
    // Tiles of 128 rows if they make two CTAs for each of an H100's 132 SMs, else of 64.
    static constexpr int kMinCtas = 264;
};

struct AttentionPlan {
    int32_t max_decode_tokens;      // of a sequence; longer ones are the prefill kernel's; 0: there is no decode kernel
    int32_t decode_items;           // CTAs of the decode kernel per key/value head, an upper bound
    int32_t target_items;           // items the decode kernel divides the keys of all its sequences into, about
    int32_t partial_items;          // of decode_items, those whose sequence is split, an upper bound
    int32_t cluster_splits;         // CTAs of a cluster that shares a row tile's keys, or 0: items instead
    bool is_hopper;                 // the prefill kernel is the one for compute capability 9.0
    int32_t prefill_rows;           // query rows of a prefill tile, or 0: no sequence can need the prefill kernel
    int32_t prefill_tiles;          // CTAs of the prefill kernel per key/value head, an upper bound
    size_t partial_out_offset;      // float [partial_items, Hkv, 16, D]
    size_t partial_max_sum_offset;  // float2 [partial_items, Hkv, 16]
    size_t finished_offset;         // uint64 [partial_items, Hkv]
    size_t next_tile_offset;        // int32, of the prefill kernel
    size_t workspace_size;
};

// The workspace does not depend on is_hopper.
AttentionPlan plan_attention(const qwen3moe_paged_attention_shape& shape, bool is_hopper);
std::ostream& operator<<(std::ostream& stream, const AttentionPlan& plan);

}  // namespace qwen3moe
