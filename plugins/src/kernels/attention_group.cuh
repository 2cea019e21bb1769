// One warpgroup's share of prefill attention on Hopper: 64 rows of queries against tiles of 128 keys and values, with
// an online softmax; and the tiles in shared memory that its products read.
#pragma once

#include <cmath>

#include "attention_tile.cuh"
#include "tma.cuh"
#include "wgmma_attention.cuh"

namespace qwen3moe {

struct HopperConfig {
    static constexpr int kGroups = 2;  // warpgroups that multiply
    static constexpr int kGroupRows = 64;
    static constexpr int kRows = kGroups * kGroupRows;
    static constexpr int kKeys = 128;
    // CTAs in a cluster, which take neighbouring tiles of rows and share keys and values: each copies half of a tile,
    // to both. Alone, 132 of them would read 5 TB/s from the L2, which is what bounds them: 988 us instead of 877 for
    // 8192 tokens (H200).
    static constexpr int kRanks = 2;
};

constexpr int kHalf = kTmaBytes / 2;  // elements of D in a row of a half tile

// [kTileRows, D] as D / 64 halves [kTileRows, 64], chunks permuted within a half's row as the copy engine and wgmma
// have it.
template <typename T, int kHeadDim, int kTileRows>
struct HalvedTile {
    T* data;

    __device__ __forceinline__ T* half(int idx) const { return data + idx * kTileRows * kHalf; }
    __device__ __forceinline__ T* chunk(int row, int chunk) const {
        constexpr int kChunks = kHalf / kVector;
        return half(chunk / kChunks) + row * kHalf + ((chunk % kChunks) ^ (row % 8)) * kVector;
    }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A warpgroup's 64 rows. Lane 4 * group + quad of warp w holds columns 8 n + 2 quad, + 1 of rows 16 w + group (elements
// 0, 1 of an accumulator) and + 8 (elements 2, 3).
template <typename T, int kHeadDim>
struct GroupAttention {
    using Scores = float[HopperConfig::kKeys / 8][4];
    using Probabilities = uint32_t[HopperConfig::kKeys / 16][4];

    float out[kHeadDim / 8][4] = {};            // not yet divided by the sum
    float row_max[2] = {-INFINITY, -INFINITY};  // of the scores, unscaled
    float row_sum[2] = {};                      // this lane's columns only

    // Starts scores = rows of `queries` x `keys`^T.
    __device__ __forceinline__ static void start_scores(Scores& scores, const T* queries, const T* keys) {
        wgmma_fence();
#pragma unroll
        for (int half = 0; half < kHeadDim / kHalf; ++half) {
            const uint64_t a = wgmma_descriptor(queries + half * HopperConfig::kRows * kHalf);
            const uint64_t b = wgmma_descriptor(keys + half * HopperConfig::kKeys * kHalf);
#pragma unroll
            for (int k = 0; k < kHalf / 16; ++k) wgmma_scores<T>(scores, a + 2 * k, b + 2 * k, half + k > 0);
        }
        wgmma_commit();
    }

    // Starts out += probabilities x values.
    __device__ __forceinline__ void start_values(const Probabilities& probabilities, const T* values) {
        constexpr int kStepBytes = 16 * kTmaBytes;  // 16 keys
        wgmma_fence();
        const uint64_t b = wgmma_rows_descriptor(values, HopperConfig::kKeys * kTmaBytes);
#pragma unroll
        for (int k = 0; k < HopperConfig::kKeys / 16; ++k)
            wgmma_values<T>(out, probabilities[k], b + k * (kStepBytes >> 4));
        wgmma_commit();
    }

    // Drops keys past the positions of the lane's two rows; the tile's first key is at index first_key.
    __device__ __forceinline__ static void mask(Scores& scores, const int32_t (&positions)[2], int32_t first_key) {
        const int32_t lane_key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < HopperConfig::kKeys / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (lane_key + 8 * n + i % 2 > positions[i / 2]) scores[n][i] = -INFINITY;
    }

    // Turns scores into exp(scale * (score - running maximum)); `rescale` is what brings `out` to the new maximum.
    // Every row sees the first key, so a maximum is -inf before the first tile only.
    __device__ __forceinline__ void softmax(Scores& scores, float (&rescale)[2], float scale_log2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float maximum = row_max[half];
#pragma unroll
            for (int n = 0; n < HopperConfig::kKeys / 8; ++n)
                maximum = fmaxf(maximum, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
            const float base = maximum * scale_log2;
            rescale[half] = exp2_approx(row_max[half] * scale_log2 - base);
            row_max[half] = maximum;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < HopperConfig::kKeys / 8; ++n)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2_approx(fmaf(scores[n][i], scale_log2, -base));
                    sum += scores[n][i];
                }
            row_sum[half] = row_sum[half] * rescale[half] + sum;
        }
    }

    // An accumulator pair of columns is an operand pair as it stands.
    __device__ __forceinline__ static void pack(Probabilities& probabilities, const Scores& scores) {
#pragma unroll
        for (int k = 0; k < HopperConfig::kKeys / 16; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float (&p)[4] = scores[2 * k + i / 2];
                probabilities[k][i] = pack2<T>(p[i % 2 * 2], p[i % 2 * 2 + 1]);
            }
    }

    __device__ __forceinline__ void scale_out(const float (&factor)[2]) {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
    }

    __device__ __forceinline__ void divide_by_sums() {
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = row_sum[half];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            inverse[half] = 1.0f / sum;
        }
        scale_out(inverse);
    }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe
