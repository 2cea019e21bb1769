// MoE for few tokens: matrix-vector products that read weights at memory speed, without sorting assignments.
//
// Two kernels: gate_up with SwiGLU, one block row per assignment; down with the weighted sum over a token's experts in
// the order of their choice. A warp of gate_up routes its token itself, which takes 3 us less than a kernel ahead of
// it. Warps stream whole weight rows, 512 contiguous bytes per load instruction.
#pragma once

#include "launch.cuh"
#include "loads.cuh"
#include "mma.cuh"
#include "moe_params.cuh"
#include "moe_route.cuh"
#include "moe_swiglu.cuh"

namespace qwen3moe::moe {

constexpr int kGemvThreads = 128;
constexpr int kGemvWarps = kGemvThreads / 32;
constexpr int kGemvFeatures = 2;  // per warp: 2 gate and 2 up rows
constexpr int kGateUpSteps = 2;   // 16-byte steps along each row: 8 loads of 512 bytes in flight per warp
constexpr int kDownBatch = 8;     // experts whose rows of down a warp reads at the same time: as many bytes
constexpr int kElements = 8;      // of 16 bits in one 16-byte load

template <typename T>
__device__ __forceinline__ void unpack(float (&out)[kElements], const uint4& vector) {
    const T* elements = reinterpret_cast<const T*>(&vector);
#pragma unroll
    for (int i = 0; i < kElements; ++i) out[i] = to_float(elements[i]);
}

template <typename T>
__device__ __forceinline__ float dot(float sum, const uint4& weights, const float (&x)[kElements]) {
    float w[kElements];
    unpack<T>(w, weights);
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum = fmaf(w[i], x[i], sum);
    return sum;
}

// sums += the products of x with 2 gate and 2 up rows, over kSteps steps of 32 * 8 elements, 8 of them per lane.
template <typename T, int kSteps>
__device__ __forceinline__ void add_products(float (&sums)[2 * kGemvFeatures], const T* x, const T* gate, const T* up,
                                             size_t row_stride) {
    uint4 weights[kSteps][2 * kGemvFeatures], xs[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const int offset = step * 32 * kElements;
#pragma unroll
        for (int f = 0; f < kGemvFeatures; ++f) {
            weights[step][f] = load_streaming(gate + f * row_stride + offset);
            weights[step][kGemvFeatures + f] = load_streaming(up + f * row_stride + offset);
        }
        xs[step] = load_cached(x + offset);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        float values[kElements];
        unpack<T>(values, xs[step]);
#pragma unroll
        for (int r = 0; r < 2 * kGemvFeatures; ++r) sums[r] = dot<T>(sums[r], weights[step][r], values);
    }
}

// Grid: (I / 8, N). activation[a] = silu(gate @ x) * (up @ x).
template <typename T>
__global__ void __launch_bounds__(kGemvThreads, 6) gemv_gate_up_kernel(Params<T> p) {
    const int lane = threadIdx.x % 32;
    const int assignment = blockIdx.y;
    const int feature = (blockIdx.x * kGemvWarps + threadIdx.x / 32) * kGemvFeatures;
    const size_t hidden_size = p.hidden_size;
    wait_for_predecessor();
    allow_successor();
    const int token = assignment / p.top_k;
    const Choice choice = route_token(p, token, lane);
    if (blockIdx.x == 0 && threadIdx.x < 32 && assignment % p.top_k == 0) store_choice(p, token, lane, choice);
    const int slot = __shfl_sync(~0u, choice.slot, assignment % p.top_k);
    if (slot < 0) return;

    const T* x = p.hidden + token * hidden_size;
    const T* gate = p.gate_up + (static_cast<size_t>(slot) * 2 * p.intermediate_size + feature) * hidden_size;
    const T* up = gate + p.intermediate_size * hidden_size;
    float sums[2 * kGemvFeatures] = {};  // gates, then ups
    constexpr int kStep = 32 * kElements;
    int h = lane * kElements;
    for (; h + (kGateUpSteps - 1) * kStep < p.hidden_size; h += kGateUpSteps * kStep) {
        add_products<T, kGateUpSteps>(sums, x + h, gate + h, up + h, hidden_size);
    }
    for (; h < p.hidden_size; h += kStep) add_products<T, 1>(sums, x + h, gate + h, up + h, hidden_size);
    T* activation = p.activation + static_cast<size_t>(assignment) * p.intermediate_size + feature;
#pragma unroll
    for (int f = 0; f < kGemvFeatures; ++f) {
        const float value = swiglu(warp_sum(sums[f]), warp_sum(sums[kGemvFeatures + f]));
        if (lane == 0) activation[f] = from_float<T>(value);
    }
}

template <typename T>
__device__ __forceinline__ const T* down_row(const Params<T>& p, int slot, int row) {
    return p.down + (static_cast<size_t>(slot) * p.hidden_size + row) * p.intermediate_size;
}

// Grid: (H / 4, T). out[t] = sum over j of topk_weight[t, j] * (down @ activation[t, j]). Lane j keeps choice j.
// A warp's loads of 8 experts are in flight together: one expert's row of 1.5 KB (I 768) would be only 3.
template <typename T>
__global__ void __launch_bounds__(kGemvThreads) gemv_down_kernel(Params<T> p) {
    const int lane = threadIdx.x % 32;
    const int token = blockIdx.y;
    const int row = blockIdx.x * kGemvWarps + threadIdx.x / 32;
    wait_for_predecessor();
    allow_successor();

    const bool is_choice = lane < p.top_k;
    const int slot = is_choice ? p.topk_slot[token * p.top_k + lane] : -1;
    const float weight = is_choice ? p.topk_weight[token * p.top_k + lane] : 0.0f;
    const T* activation = p.activation + static_cast<size_t>(token) * p.top_k * p.intermediate_size;
    float sum = 0.0f;
    for (int base = 0; base < p.intermediate_size; base += 32 * kElements) {
        const int i = base + lane * kElements;
        for (int j0 = 0; j0 < p.top_k; j0 += kDownBatch) {
            uint4 weights[kDownBatch], x[kDownBatch];
#pragma unroll
            for (int u = 0; u < kDownBatch; ++u) {
                const int expert_slot = __shfl_sync(~0u, slot, j0 + u);
                weights[u] = x[u] = make_uint4(0, 0, 0, 0);
                if (expert_slot < 0 || i >= p.intermediate_size) continue;
                weights[u] = load_streaming(down_row(p, expert_slot, row) + i);
                x[u] = load_cached(activation + (j0 + u) * p.intermediate_size + i);
            }
#pragma unroll
            for (int u = 0; u < kDownBatch; ++u) {
                float xs[kElements];
                unpack<T>(xs, x[u]);
                sum = fmaf(__shfl_sync(~0u, weight, j0 + u), dot<T>(0.0f, weights[u], xs), sum);
            }
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) p.out[static_cast<size_t>(token) * p.hidden_size + row] = from_float<T>(sum);
}

}  // namespace qwen3moe::moe
