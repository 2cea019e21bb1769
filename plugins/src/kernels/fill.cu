// Pseudo-random weights made where they are used: 61 GB would take a host minutes to make and copy.
// splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of a counter, so that any framework can make the same values.
#include "mma.cuh"
#include "status.h"

namespace qwen3moe {

namespace {

__device__ __forceinline__ uint64_t splitmix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

template <typename T>
__global__ void fill_kernel(T* values, uint64_t count, uint64_t seed, float low, float high) {
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const uint64_t bits = splitmix64(splitmix64(seed) + i) >> 40;  // 24 bits, which fp32 holds exactly
        values[i] = from_float<T>(low + (high - low) * (static_cast<float>(bits) * 0x1p-24f));
    }
}

}  // namespace

}  // namespace qwen3moe

extern "C" size_t qwen3moe_fill_workspace_size(const qwen3moe_fill_shape*) { return 0; }

extern "C" int32_t qwen3moe_fill(const qwen3moe_fill_shape* shape, const qwen3moe_fill_tensors* tensors, void*, size_t,
                                 qwen3moe_stream stream) {
    constexpr int kBlocks = 2048, kThreads = 256;
    if (shape->count == 0) return QWEN3MOE_SUCCESS;
    QWEN3MOE_CHECK_ARG(tensors->values, !=, nullptr);
    if (shape->dtype == QWEN3MOE_BF16) {
        qwen3moe::fill_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(tensors->values),
                                                                shape->count, shape->seed, shape->low, shape->high);
    } else {
        QWEN3MOE_CHECK_ARG(shape->dtype, ==, static_cast<int32_t>(QWEN3MOE_FP16));
        qwen3moe::fill_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<__half*>(tensors->values), shape->count,
                                                                shape->seed, shape->low, shape->high);
    }
    QWEN3MOE_CHECK_CUDA(cudaGetLastError());
    return QWEN3MOE_SUCCESS;
}
