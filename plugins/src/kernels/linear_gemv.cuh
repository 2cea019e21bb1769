// A weight matrix times few tokens: one pass over the weight at memory speed.
//
// A block has 16 rows of the weight, and its warps share K. Tensor cores do the products, as 8 tokens cost FMA units
// more than the loads take. Fragments come straight from memory: a sum over K may take it in any order, so the 8
// elements of one 16-byte load stand for the k that mma.m16n8k16 wants in two instructions (mma.cuh), in the weight and
// in x alike.
// Legend: T tokens, K in_features, N out_features.
#pragma once

#include "launch.cuh"
#include "linear_config.h"
#include "loads.cuh"
#include "mma.cuh"

namespace qwen3moe::linear {

template <typename T, typename Out>
struct GemvParams {
    const T* x;        // [T, K]
    const T* weight;   // [N, K]
    Out* out;          // [T, N]
    int num_tokens;    // T
    int in_features;   // K
    int out_features;  // N
};

template <typename Out>
__device__ __forceinline__ Out convert(float x) {
    return from_float<Out>(x);
}
template <>
__device__ __forceinline__ float convert<float>(float x) {
    return x;
}

// Rows group and group + 8 of the block over one chunk of K, 8 elements a lane and step.
struct WeightChunk {
    uint4 upper[kSteps], lower[kSteps];

    template <typename T>
    __device__ __forceinline__ void load(const T* upper_row, const T* lower_row, int k, int in_features) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int at = k + step * kStep;
            upper[step] = lower[step] = make_uint4(0, 0, 0, 0);
            if (at >= in_features) continue;
            upper[step] = load_streaming(upper_row + at);
            lower[step] = load_streaming(lower_row + at);
        }
    }
};

// The same elements of x, of tokens group, group + 8, ... All are asked for before the first is used.
template <int kTokenTiles>
struct TokenChunk {
    uint4 values[kTokenTiles][kSteps];

    template <typename T>
    __device__ __forceinline__ void load(const T* x, int group, int k, int num_tokens, int in_features) {
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const int token = tile * kTileTokens + group, at = k + step * kStep;
                values[tile][step] = make_uint4(0, 0, 0, 0);
                if (token < num_tokens && at < in_features)
                    values[tile][step] = load_cached(x + static_cast<size_t>(token) * in_features + at);
            }
    }
};

// acc += weight rows @ x, over one chunk.
template <typename T, int kTokenTiles>
__device__ __forceinline__ void multiply(float (&acc)[kTokenTiles][4], const WeightChunk& weight,
                                         const TokenChunk<kTokenTiles>& x) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const uint4 &upper = weight.upper[step], &lower = weight.lower[step];
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile) {
            const uint4& values = x.values[tile][step];
            mma_m16n8k16<T>(acc[tile], {upper.x, lower.x, upper.y, lower.y}, {values.x, values.y});
            mma_m16n8k16<T>(acc[tile], {upper.z, lower.z, upper.w, lower.w}, {values.z, values.w});
        }
    }
}

// Adds up the warps' sums in their order, and writes them.
template <typename T, typename Out, int kTokenTiles>
__device__ __forceinline__ void store_sums(const GemvParams<T, Out>& p, const float (&acc)[kTokenTiles][4]) {
    __shared__ float sums[kMaxWarps][kTokenTiles * kTileTokens][kRows + 1];  // + 1: a lane's four land in four banks
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][tile * kTileTokens + 2 * quad + i % 2][group + i / 2 * 8] = acc[tile][i];
    __syncthreads();
    for (int i = threadIdx.x; i < p.num_tokens * kRows; i += blockDim.x) {
        const int token = i / kRows, row = blockIdx.x * kRows + i % kRows;
        if (row >= p.out_features) continue;
        float sum = 0.0f;
        for (int w = 0; w < blockDim.x / 32; ++w) sum += sums[w][token][i % kRows];
        p.out[static_cast<size_t>(token) * p.out_features + row] = convert<Out>(sum);
    }
}

// Grid: ceil(N / 16). The weight is constant, so its first chunk is on its way before the kernel ahead has ended.
template <typename T, typename Out, int kTokenTiles>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) gemv_kernel(GemvParams<T, Out> p) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4, num_warps = blockDim.x / 32;
    const int upper_row = min(static_cast<int>(blockIdx.x) * kRows + group, p.out_features - 1);
    const int lower_row = min(upper_row + 8, p.out_features - 1);
    const T* upper = p.weight + static_cast<size_t>(upper_row) * p.in_features;
    const T* lower = p.weight + static_cast<size_t>(lower_row) * p.in_features;
    int k = static_cast<int>(threadIdx.x) / 32 * kChunk + quad * kElements;
    WeightChunk weight;
    weight.load(upper, lower, k, p.in_features);
    wait_for_predecessor();
    allow_successor();
    float acc[kTokenTiles][4] = {};
    while (k < p.in_features) {
        TokenChunk<kTokenTiles> x;
        x.load(p.x, group, k, p.num_tokens, p.in_features);
        multiply<T>(acc, weight, x);
        k += num_warps * kChunk;
        weight.load(upper, lower, k, p.in_features);
    }
    store_sums<T, Out, kTokenTiles>(p, acc);
}

template <typename T, typename Out>
cudaError_t launch_gemv(const Config& config, const GemvParams<T, Out>& params, cudaStream_t stream) {
    const auto kernel = config.token_tiles == 1 ? &gemv_kernel<T, Out, 1> : &gemv_kernel<T, Out, 2>;
    const dim3 grid((params.out_features + kRows - 1) / kRows);
    return launch_kernel(kernel, {grid, 32 * config.warps, 0, stream, config.dependent_launch}, params);
}

}  // namespace qwen3moe::linear
