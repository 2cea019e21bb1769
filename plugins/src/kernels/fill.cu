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
__global__ void fill_kernel(T* values, qwen3moe_fill_shape shape) {
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    const uint64_t key = splitmix64(shape.seed);
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < shape.count; i += stride) {
        const uint64_t element = shape.first + i / shape.columns * shape.row_stride + i % shape.columns;
        const uint64_t bits = splitmix64(key + element) >> 40;  // 24 bits, which fp32 holds exactly
        values[i] = from_float<T>(shape.low + (shape.high - shape.low) * (static_cast<float>(bits) * 0x1p-24f));
    }
}

template <typename T>
void launch_fill(void* values, const qwen3moe_fill_shape& shape, qwen3moe_stream stream) {
    constexpr int kThreads = 256;
    constexpr uint64_t kMaxBlocks = 2048;
    const uint64_t blocks = (shape.count + kThreads - 1) / kThreads;
    fill_kernel<<<static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream>>>(
        static_cast<T*>(values), shape);
}

}  // namespace

}  // namespace qwen3moe

extern "C" size_t qwen3moe_fill_workspace_size(const qwen3moe_fill_shape*) { return 0; }

extern "C" int32_t qwen3moe_fill(const qwen3moe_fill_shape* shape, const qwen3moe_fill_tensors* tensors, void*, size_t,
                                 qwen3moe_stream stream) {
    if (shape->count == 0) return QWEN3MOE_SUCCESS;
    QWEN3MOE_CHECK_ARG(shape->columns, >, 0);
    QWEN3MOE_CHECK_ARG(tensors->values, !=, nullptr);
    if (shape->dtype == QWEN3MOE_BF16) {
        qwen3moe::launch_fill<__nv_bfloat16>(tensors->values, *shape, stream);
    } else {
        QWEN3MOE_CHECK_ARG(shape->dtype, ==, static_cast<int32_t>(QWEN3MOE_FP16));
        qwen3moe::launch_fill<__half>(tensors->values, *shape, stream);
    }
    QWEN3MOE_CHECK_CUDA(cudaGetLastError());
    return QWEN3MOE_SUCCESS;
}
