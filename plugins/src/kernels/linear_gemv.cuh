// A weight matrix times few tokens: one pass over the weight at memory speed.
//
// A block has 16 rows of the weight, and its warps share K. Tensor cores do the products, as 8 tokens cost FMA units
// more than the loads take. A sum over K may take it in any order, so the 8 elements of one 16-byte vector stand for
// the k that mma.m16n8k16 wants in two instructions (mma.cuh), in the weight and in x alike.
//
// The weight is constant, so it is on its way before the kernels ahead have ended: all of it up to K 4096. Shared
// memory holds it, so that with 80 registers a thread three blocks of 64 KB (K 2048) fit a multiprocessor of an H200,
// hence all 320 blocks of 5120 outputs the GPU, and one of 128 KB (K 4096) fits beside a block of decode attention.
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

constexpr int kStep = 4 * kElements;  // elements of a row that a quad of lanes takes at once
constexpr int kSteps = kChunk / kStep;
constexpr int kVectors = kChunk / kElements;  // of 16 bytes, in a row of a chunk

template <typename Out>
__device__ __forceinline__ Out convert(float x) {
    return from_float<Out>(x);
}
template <>
__device__ __forceinline__ float convert<float>(float x) {
    return x;
}

// A warp's chunks of the block's rows in shared memory, [kStages, kRows, kChunk].
template <typename T>
struct WeightChunks {
    T* data;

    // A quarter of a warp reads four vectors of each of two neighbouring rows: odd rows trade places by fours, so that
    // those lie in distinct banks.
    __device__ __forceinline__ T* vector(int stage, int row, int idx) const {
        return data + (stage * kRows + row) * kChunk + (idx ^ row % 2 * 4) * kElements;
    }

    // Starts the copy of elements k.. of the rows, with zeros where there are none.
    __device__ __forceinline__ void load(int stage, const T* weight, int first_row, int k, int in_features,
                                         int out_features) const {
        constexpr int kRowsAtOnce = 32 / kVectors;
        const int idx = threadIdx.x % kVectors, lane_row = threadIdx.x % 32 / kVectors;
        const int at = k + idx * kElements;
        const T* source = weight + static_cast<size_t>(first_row + lane_row) * in_features + at;
#pragma unroll
        for (int row = lane_row; row < kRows; row += kRowsAtOnce) {
            cp_async_16(vector(stage, row, idx), source, first_row + row < out_features && at < in_features);
            source += static_cast<size_t>(kRowsAtOnce) * in_features;
        }
    }
};

// What a lane needs of the tokens for a chunk.
template <int kTokenTiles>
struct TokenChunk {
    uint4 values[kTokenTiles][kSteps];

    template <typename T>
    __device__ __forceinline__ void load(const T* x, int k, int num_tokens, int in_features) {
        const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const int token = tile * kTileTokens + group, at = k + step * kStep + quad * kElements;
                values[tile][step] = make_uint4(0, 0, 0, 0);
                if (token < num_tokens && at < in_features)
                    values[tile][step] = load_cached(x + static_cast<size_t>(token) * in_features + at);
            }
    }
};

// acc += weight rows @ x, over one chunk.
template <typename T, int kTokenTiles>
__device__ __forceinline__ void multiply(float (&acc)[kTokenTiles][4], const WeightChunks<T>& weight, int stage,
                                         const TokenChunk<kTokenTiles>& x) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const uint4 upper = *reinterpret_cast<const uint4*>(weight.vector(stage, group, step * 4 + quad));
        const uint4 lower = *reinterpret_cast<const uint4*>(weight.vector(stage, group + 8, step * 4 + quad));
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile) {
            const uint4& values = x.values[tile][step];
            mma_m16n8k16<T>(acc[tile], {upper.x, lower.x, upper.y, lower.y}, {values.x, values.y});
            mma_m16n8k16<T>(acc[tile], {upper.z, lower.z, upper.w, lower.w}, {values.z, values.w});
        }
    }
}

// A warp's sums over its part of K, in the place of its chunks.
template <int kTokenTiles>
struct WarpSums {
    float values[kTokenTiles * kTileTokens][kRows + 1];  // + 1: a lane's four land in four banks

    __device__ __forceinline__ void store(const float (&acc)[kTokenTiles][4]) {
        const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) values[tile * kTileTokens + 2 * quad + i % 2][group + i / 2 * 8] = acc[tile][i];
    }
};

// Grid: ceil(N / 16).
template <typename T, typename Out, int kTokenTiles>
__global__ void __maxnreg__(kTokenTiles == 1 ? 80 : 128) gemv_kernel(GemvParams<T, Out> p) {
    using Sums = WarpSums<kTokenTiles>;
    static_assert(sizeof(Sums) <= kWarpBytes, "sums take the place of chunks");
    extern __shared__ uint4 shared[];
    const int first_row = blockIdx.x * kRows, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    const int stride = num_warps * kChunk;
    const WeightChunks<T> weight{reinterpret_cast<T*>(shared) + warp * kStages * kRows * kChunk};
    const auto load = [&](int stage, int k) {
        if (k < p.in_features) weight.load(stage, p.weight, first_row, k, p.in_features, p.out_features);
        cp_async_commit();
    };
    int k = warp * kChunk;
    allow_successor();
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) load(stage, k + stage * stride);
    wait_for_predecessor();

    float acc[kTokenTiles][4] = {};
    for (; k < p.in_features; k += kStages * stride) {
        TokenChunk<kTokenTiles> x[kStages];
#pragma unroll
        for (int stage = 0; stage < kStages; ++stage)
            x[stage].load(p.x, k + stage * stride, p.num_tokens, p.in_features);
#pragma unroll
        for (int stage = 0; stage < kStages; ++stage) {
            cp_async_wait<kStages - 1>();
            __syncwarp();
            if (k + stage * stride < p.in_features) multiply<T>(acc, weight, stage, x[stage]);
            __syncwarp();
            load(stage, k + (stage + kStages) * stride);
        }
    }
    cp_async_wait<0>();
    __syncwarp();
    const auto sums_of = [&](int w) {
        return reinterpret_cast<Sums*>(reinterpret_cast<char*>(shared) + w * kWarpBytes);
    };
    sums_of(warp)->store(acc);
    __syncthreads();
    for (int i = threadIdx.x; i < p.num_tokens * kRows; i += blockDim.x) {
        const int token = i / kRows, row = i % kRows;
        if (first_row + row >= p.out_features) continue;
        float sum = 0.0f;
        for (int w = 0; w < num_warps; ++w) sum += sums_of(w)->values[token][row];
        p.out[static_cast<size_t>(token) * p.out_features + first_row + row] = convert<Out>(sum);
    }
}

template <typename T, typename Out>
cudaError_t launch_gemv(const Config& config, const GemvParams<T, Out>& params, cudaStream_t stream) {
    const auto kernel = config.token_tiles == 1 ? &gemv_kernel<T, Out, 1> : &gemv_kernel<T, Out, 2>;
    const dim3 grid((params.out_features + kRows - 1) / kRows);
    const size_t shared_bytes = static_cast<size_t>(config.warps) * kWarpBytes;
    return launch_kernel(kernel, {grid, 32 * config.warps, shared_bytes, stream, config.dependent_launch}, params);
}

}  // namespace qwen3moe::linear
