// How a block shares a row to be normalised: 256 threads, each of them with vectors of the row in its registers.
#pragma once

#include "mma.cuh"

namespace qwen3moe::rms_norm {

constexpr int kThreads = 256;
constexpr int kVector = 8;                                 // 16-bit elements in 16 bytes
constexpr int kMaxVectors = 16384 / (kThreads * kVector);  // a thread's share of the longest row

__device__ __forceinline__ float block_sum(float value) {
    __shared__ float partial[kThreads / 32];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp < kThreads / 32; ++warp) value += partial[warp];  // every thread in the same order
    return value;
}

template <typename T>
struct alignas(16) Vector {
    T values[kVector];
};

}  // namespace qwen3moe::rms_norm
