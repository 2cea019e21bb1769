// Merging of partial softmax results: of the warps of a CTA, then of the CTAs that share a sequence.
//
// A partial result of a row is its running maximum m (scaled, base 2), the sum of 2^(score - m), and the output not yet
// divided by that sum. They are merged in an order that does not depend on who finishes last, so the bits do not vary.
#pragma once

#include "attention_plan.h"
#include "attention_warp.cuh"

namespace qwen3moe {

struct MaxSum {
    float max = -INFINITY;
    float sum = 0.0f;

    __device__ __forceinline__ float weight(float maximum) const { return exp2_approx(maximum - finite_base(max)); }
    __device__ __forceinline__ void merge(float2 other) {
        const float before = max;
        max = fmaxf(max, other.x);
        sum = sum * weight(before) + other.y * weight(other.x);
    }
};

__device__ __forceinline__ void add_weighted(float4& sum, float weight, const float4& x) {
    sum = {sum.x + weight * x.x, sum.y + weight * x.y, sum.z + weight * x.z, sum.w + weight * x.w};
}

template <typename T>
__device__ __forceinline__ void store_scaled(T* destination, const float4& x, float scale) {
    *reinterpret_cast<uint2*>(destination) = {pack2<T>(x.x * scale, x.y * scale), pack2<T>(x.z * scale, x.w * scale)};
}

// A row's partial result of one split: its maximum and sum, and four columns of its output.
struct SplitPart {
    float2 max_sum;
    float4 out;
};

// Four columns of a row of the result, from load(split) of each in their order. Loads of a batch are in flight
// together.
template <typename Load>
__device__ __forceinline__ float4 merge_splits(int32_t num_splits, Load load) {
    constexpr int kBatch = 8;
    MaxSum total;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int32_t first = 0; first < num_splits; first += kBatch) {
        SplitPart parts[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            parts[i] = load(min(first + i, num_splits - 1));
            if (first + i >= num_splits) parts[i].max_sum = {-INFINITY, 0.0f};
        }
        const float before = total.max;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) total.merge(parts[i].max_sum);
        const float rescale = total.weight(before);
        sum = {sum.x * rescale, sum.y * rescale, sum.z * rescale, sum.w * rescale};
#pragma unroll
        for (int i = 0; i < kBatch; ++i) add_weighted(sum, total.weight(parts[i].max_sum.x), parts[i].out);
    }
    const float inverse = 1.0f / total.sum;
    return {sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse};
}

// A warp's 16 rows in shared memory. The padding of 8 floats spreads the fragment's rows over the banks.
template <int kHeadDim>
struct WarpPartial {
    float2 max_sum[DecodeConfig::kRows];
    float out[DecodeConfig::kRows][kHeadDim + 8];

    template <typename T, int kKeys>
    __device__ __forceinline__ void store(const WarpAttention<T, kHeadDim, 1, kKeys>& warp, float scale_log2) {
        const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = 8 * half + group;
            if (quad == 0) max_sum[row] = {warp.row_max[0][half] * scale_log2, warp.row_sum[0][half]};
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n)
                *reinterpret_cast<float2*>(&out[row][8 * n + 2 * quad]) = {warp.out[0][n][2 * half],
                                                                           warp.out[0][n][2 * half + 1]};
        }
    }
};

// The partial results of all splits of one row tile, in the workspace.
template <int kHeadDim>
struct SplitPartials {
    float4* out;         // [partial_items, Hkv, 16, D / 4]
    float2* max_sum;     // [partial_items, Hkv, 16]
    uint64_t* finished;  // [partial_items, Hkv]
    int32_t num_kv_heads;

    // Index of (item, key/value head).
    __device__ __forceinline__ int64_t at(int32_t item, int32_t kv_head) const {
        return int64_t{item} * num_kv_heads + kv_head;
    }
    __device__ __forceinline__ float4* out_row(int64_t at, int row) const {
        return out + (at * DecodeConfig::kRows + row) * (kHeadDim / 4);
    }
    __device__ __forceinline__ float2* max_sum_row(int64_t at, int row) const {
        return max_sum + at * DecodeConfig::kRows + row;
    }
};

// The splits of a row tile: where their partial results lie, and which of their CTAs merges them.
template <int kHeadDim>
struct SplitSet {
    const SplitPartials<kHeadDim>& partials;
    int64_t first;   // SplitPartials::at of split 0
    int64_t stride;  // from split to split
    int32_t num_splits;

    // Marks `split` as finished. True in all threads if every split is: then the partial results are visible, and the
    // caller merges them.
    //
    // The workspace comes with arbitrary content, and clearing it would cost a launch, counting with compare-and-swap
    // one round trip per split. So each split has a word that holds a 64-bit tag from its finish to the merge; anything
    // else means not finished. A CTA stores its own tag, then (after a fence) looks at all. Whoever is last sees all of
    // them. So may another, or the tags may be gone already because another has seen them all: then that one merges,
    // and two that both merge write the same bits.
    __device__ __forceinline__ bool finish(int32_t split) const {
        constexpr uint64_t kTag = 0x9c51e7a36b2d48f1;
        __threadfence();
        __syncthreads();
        volatile uint64_t* words = partials.finished + first;
        if (threadIdx.x == 0) words[split * stride] = kTag;
        __threadfence();
        __syncthreads();
        bool all = true;
        for (int32_t i = threadIdx.x; i < num_splits; i += DecodeConfig::kThreads) all &= words[i * stride] == kTag;
        all = __syncthreads_and(all);
        if (!all) return false;
        for (int32_t i = threadIdx.x; i < num_splits; i += DecodeConfig::kThreads) words[i * stride] = 0;
        return true;
    }

    // Four columns of a row of the result.
    __device__ __forceinline__ float4 merged(int row, int column) const {
        return merge_splits(num_splits, [&](int32_t split) {
            const int64_t at = first + split * stride;
            return SplitPart{__ldcg(partials.max_sum_row(at, row)), __ldcg(partials.out_row(at, row) + column)};
        });
    }
};

}  // namespace qwen3moe
