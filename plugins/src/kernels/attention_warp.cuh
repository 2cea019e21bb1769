// One warp's share of attention: some rows of queries against tiles of keys and values, with an online softmax.
//
// Rows come in tiles of 16 (the M of mma.m16n8k16). Lane 4 * group + quad holds of a 16 x 8 accumulator the columns
// 2 * quad, 2 * quad + 1 of rows group (fragment elements 0, 1) and group + 8 (elements 2, 3).
#pragma once

#include <cmath>

#include "attention_tile.cuh"

namespace qwen3moe {

// What exponents are taken against: a row that has seen no key yet has maximum -inf, and -inf - -inf is NaN.
__device__ __forceinline__ float finite_base(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

template <typename T, int kHeadDim, int kRowTiles, int kKeys>
struct WarpAttention {
    static constexpr int kRows = 16 * kRowTiles;
    using Scores = float[kRowTiles][kKeys / 8][4];

    float out[kRowTiles][kHeadDim / 8][4];  // not yet divided by the sum
    float row_max[kRowTiles][2];            // of the scores, unscaled
    float row_sum[kRowTiles][2];            // this lane's columns only, until reduce_sums()

    __device__ __forceinline__ WarpAttention() {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) out[r][n][0] = out[r][n][1] = out[r][n][2] = out[r][n][3] = 0.0f;
            row_max[r][0] = row_max[r][1] = -INFINITY;
            row_sum[r][0] = row_sum[r][1] = 0.0f;
        }
    }

    // scores [kRows, kKeys] = rows first_row.. of `queries` times `keys` transposed.
    __device__ __forceinline__ static void multiply_keys(Scores& scores, const SharedTile<T, kHeadDim>& queries,
                                                         int first_row, const SharedTile<T, kHeadDim>& keys) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
                scores[r][n][0] = scores[r][n][1] = scores[r][n][2] = scores[r][n][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < kHeadDim / 16; ++k) {
            uint32_t a[kRowTiles][4];
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) ldmatrix_x4(a[r], queries.lane_row(first_row + 16 * r, k));
#pragma unroll
            for (int n = 0; n < kKeys / 8; n += 2) {
                uint32_t b[4];  // keys 8 n..8 n + 7: b[0], b[1]; the next eight: b[2], b[3]
                ldmatrix_x4(b, keys.lane_row_across(8 * n, k));
#pragma unroll
                for (int r = 0; r < kRowTiles; ++r) {
                    mma_m16n8k16<T>(scores[r][n], a[r], {b[0], b[1]});
                    mma_m16n8k16<T>(scores[r][n + 1], a[r], {b[2], b[3]});
                }
            }
        }
    }

    // Drops keys past the position of each of rows first_row..; the tile's first key is at index first_key.
    __device__ __forceinline__ static void mask(Scores& scores, const QueryRows& rows, int32_t first_row,
                                                int32_t first_key) {
        const int32_t lane_row = first_row + threadIdx.x % 32 / 4, lane_key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int32_t position = rows.position(lane_row + 16 * r + 8 * half);
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        if (lane_key + 8 * n + i > position) scores[r][n][2 * half + i] = -INFINITY;
            }
    }

    // Turns scores into exp(scale * (score - running maximum)) and brings sums and outputs to the new maximum.
    __device__ __forceinline__ void softmax(Scores& scores, float scale_log2) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float maximum = row_max[r][half];
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
                    maximum = fmaxf(maximum, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
                maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
                maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
                const float base = finite_base(maximum) * scale_log2;
                const float rescale = exp2_approx(row_max[r][half] * scale_log2 - base);
                row_max[r][half] = maximum;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[r][n][i] = exp2_approx(scores[r][n][i] * scale_log2 - base);
                        sum += scores[r][n][i];
                    }
                row_sum[r][half] = row_sum[r][half] * rescale + sum;
#pragma unroll
                for (int n = 0; n < kHeadDim / 8; ++n) {
                    out[r][n][2 * half] *= rescale;
                    out[r][n][2 * half + 1] *= rescale;
                }
            }
    }

    // out += probabilities [kRows, kKeys] times values. An accumulator pair of columns is an operand pair as it stands.
    __device__ __forceinline__ void multiply_values(const Scores& probabilities,
                                                    const SharedTile<T, kHeadDim>& values) {
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
            uint32_t a[kRowTiles][4];
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float (&p)[4] = probabilities[r][2 * k + i / 2];
                    a[r][i] = pack2<T>(p[i % 2 * 2], p[i % 2 * 2 + 1]);
                }
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; n += 2) {
                uint32_t b[4];  // columns 8 n..8 n + 7: b[0], b[1]; the next eight: b[2], b[3]
                ldmatrix_x4_trans(b, values.lane_row(16 * k, n / 2));
#pragma unroll
                for (int r = 0; r < kRowTiles; ++r) {
                    mma_m16n8k16<T>(out[r][n], a[r], {b[0], b[1]});
                    mma_m16n8k16<T>(out[r][n + 1], a[r], {b[2], b[3]});
                }
            }
        }
    }

    __device__ __forceinline__ void reduce_sums() {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                row_sum[r][half] += __shfl_xor_sync(~0u, row_sum[r][half], 1);
                row_sum[r][half] += __shfl_xor_sync(~0u, row_sum[r][half], 2);
            }
    }
};

}  // namespace qwen3moe
