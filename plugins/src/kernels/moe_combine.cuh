// The weighted sum of a token's expert outputs, in fp32, in the order of their choice, rounded once.
#pragma once

#include "launch.cuh"
#include "mma.cuh"
#include "moe_params.cuh"

namespace qwen3moe::moe {

constexpr int kCombineThreads = 128;
constexpr int kCombineCols = 8;  // per thread: 16-byte loads and stores

// Grid: (ceil(H / 1024), T).
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(Params<T> p) {
    const int col = (blockIdx.x * kCombineThreads + threadIdx.x) * kCombineCols;
    const int token = blockIdx.y;
    allow_successor();
    wait_for_predecessor();
    if (col >= p.hidden_size) return;

    float sum[kCombineCols] = {};
#pragma unroll 8
    for (int j = 0; j < p.top_k; ++j) {
        const int assignment = token * p.top_k + j;
        if (p.topk_slot[assignment] < 0) continue;
        const float weight = p.topk_weight[assignment];
        const T* row = p.expert_out + static_cast<size_t>(assignment) * p.hidden_size;
        const uint4 packed = __ldcs(reinterpret_cast<const uint4*>(row + col));
        const T* x = reinterpret_cast<const T*>(&packed);
#pragma unroll
        for (int i = 0; i < kCombineCols; ++i) sum[i] = fmaf(weight, to_float(x[i]), sum[i]);
    }
    *reinterpret_cast<uint4*>(p.out + static_cast<size_t>(token) * p.hidden_size + col) = make_uint4(
        pack2<T>(sum[0], sum[1]), pack2<T>(sum[2], sum[3]), pack2<T>(sum[4], sum[5]), pack2<T>(sum[6], sum[7]));
}

}  // namespace qwen3moe::moe
