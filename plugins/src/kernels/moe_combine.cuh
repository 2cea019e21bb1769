// The weighted sum of a token's expert outputs, in fp32, in the order of their choice, rounded once.
#pragma once

#include "launch.cuh"
#include "mma.cuh"
#include "moe_params.cuh"

namespace qwen3moe::moe {

constexpr int kCombineThreads = 128;
constexpr int kCombineCols = 4;  // per thread: 16-byte loads of fp32, 8-byte stores

// Grid: (ceil(H / 512), T).
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(Params<T> p) {
    const int col = (blockIdx.x * kCombineThreads + threadIdx.x) * kCombineCols;
    const int token = blockIdx.y;
    wait_for_predecessor();
    if (col >= p.hidden_size) return;

    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int j = 0; j < p.top_k; ++j) {
        const int assignment = token * p.top_k + j;
        if (p.topk_slot[assignment] < 0) continue;
        const float weight = p.topk_weight[assignment];
        const float* row = p.expert_out + static_cast<size_t>(assignment) * p.hidden_size;
        const float4 x = __ldcs(reinterpret_cast<const float4*>(row + col));
        sum.x = fmaf(weight, x.x, sum.x);
        sum.y = fmaf(weight, x.y, sum.y);
        sum.z = fmaf(weight, x.z, sum.z);
        sum.w = fmaf(weight, x.w, sum.w);
    }
    uint2* out = reinterpret_cast<uint2*>(p.out + static_cast<size_t>(token) * p.hidden_size + col);
    *out = make_uint2(pack2<T>(sum.x, sum.y), pack2<T>(sum.z, sum.w));
}

}  // namespace qwen3moe::moe
