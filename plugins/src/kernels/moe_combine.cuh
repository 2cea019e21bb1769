// The weighted sum of a token's expert outputs, in fp32, in the order of their choice, rounded once.
#pragma once

#include "launch.cuh"
#include "mma.cuh"
#include "moe_params.cuh"

namespace qwen3moe::moe {

constexpr int kCombineThreads = 128;
constexpr int kCombineCols = 8;   // per thread: 16-byte loads and stores
constexpr int kCombineBatch = 8;  // rows on their way together

// Grid: (ceil(H / 1024), T). The down product allowed it to start when the choices had been stored, which it may thus
// read ahead of its wait.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(Params<T> p) {
    const int col = (blockIdx.x * kCombineThreads + threadIdx.x) * kCombineCols;
    const int token = blockIdx.y, lane = threadIdx.x % 32;
    const int choice = token * p.top_k + min(lane, p.top_k - 1);
    const float own_weight = __ldcg(p.topk_weight + choice);
    const int own_slot = __ldcg(p.topk_slot + choice);
    allow_successor();
    wait_for_predecessor();

    const bool inside = col < p.hidden_size;
    const T* rows = p.expert_out + static_cast<size_t>(token) * p.top_k * p.hidden_size + col;
    float sum[kCombineCols] = {};
    for (int j0 = 0; j0 < p.top_k; j0 += kCombineBatch) {
        uint4 packed[kCombineBatch];
        bool held[kCombineBatch];
#pragma unroll
        for (int u = 0; u < kCombineBatch; ++u) {
            const int j = j0 + u;
            held[u] = __shfl_sync(~0u, own_slot, j % 32) >= 0 && j < p.top_k && inside;
            if (held[u])
                packed[u] = __ldcs(reinterpret_cast<const uint4*>(rows + static_cast<size_t>(j) * p.hidden_size));
        }
#pragma unroll
        for (int u = 0; u < kCombineBatch; ++u) {
            const float weight = __shfl_sync(~0u, own_weight, (j0 + u) % 32);
            if (!held[u]) continue;
            const T* x = reinterpret_cast<const T*>(&packed[u]);
#pragma unroll
            for (int i = 0; i < kCombineCols; ++i) sum[i] = fmaf(weight, to_float(x[i]), sum[i]);
        }
    }
    if (!inside) return;
    *reinterpret_cast<uint4*>(p.out + static_cast<size_t>(token) * p.hidden_size + col) = make_uint4(
        pack2<T>(sum[0], sum[1]), pack2<T>(sum[2], sum[3]), pack2<T>(sum[4], sum[5]), pack2<T>(sum[6], sum[7]));
}

}  // namespace qwen3moe::moe
