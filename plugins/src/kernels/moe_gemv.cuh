// MoE for few tokens: matrix-vector products that read weights at memory speed, without sorting assignments.
//
// Two kernels: gate_up with SwiGLU, one block row per assignment; down with the weighted sum over a token's experts in
// the order of their choice. Their blocks route their token themselves, which takes 3 us less than a kernel ahead, and
// lets down's weights be on their way while gate_up ends. Warps stream whole weight rows, 512 contiguous bytes per load
// instruction.
#pragma once

#include "launch.cuh"
#include "loads.cuh"
#include "mma.cuh"
#include "moe_load.cuh"
#include "moe_params.cuh"
#include "moe_route.cuh"
#include "moe_swiglu.cuh"

namespace qwen3moe::moe {

constexpr int kGemvThreads = 128;
constexpr int kGemvWarps = kGemvThreads / 32;
constexpr int kGemvFeatures = 2;  // per warp: 2 gate and 2 up rows
constexpr int kGateUpSteps = 2;   // 16-byte steps along each row: 8 loads of 512 bytes in flight per warp
constexpr int kDownBatch = 8;     // experts in a step of down: a warp reads 512 bytes of the row of each
constexpr int kDownStages = 3;    // steps in flight: all of I 768 and top 8, 12 KB a warp, for all 2048 rows at once
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
    __shared__ BlockRoute route;
    route.find<Reads::kBehindWait>(p, token);
    const int slot = route.choices[assignment % p.top_k].slot;
    if (slot < 0) return;
    if (blockIdx.x + threadIdx.x == 0) count_assignment(p, assignment, route.choices[assignment % p.top_k].expert);

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

struct DownShared {
    BlockRoute route;
    uint4 weights[kDownStages][kDownBatch][kGemvThreads];  // each thread's own
};

// One row of down for one token: 8 experts from j0 on by 256 elements a step; a lane takes 8 elements of each.
template <typename T>
struct DownRow {
    const Params<T>& p;
    DownShared& shared;
    int token, row;

    // Of the lane in a step.
    __device__ __forceinline__ int column(int step) const {
        return (step * 32 + static_cast<int>(threadIdx.x) % 32) * kElements;
    }
    __device__ __forceinline__ bool has(int choice, int step) const {
        return shared.route.choices[choice].slot >= 0 && column(step) < p.intermediate_size;
    }

    __device__ __forceinline__ void start_weights(int stage, int j0, int step) const {
#pragma unroll
        for (int u = 0; u < kDownBatch; ++u) {
            if (!has(j0 + u, step)) continue;
            const size_t weight_row = static_cast<size_t>(shared.route.choices[j0 + u].slot) * p.hidden_size + row;
            cp_async_16(&shared.weights[stage][u][threadIdx.x],
                        p.down + weight_row * p.intermediate_size + column(step));
        }
        cp_async_commit();
    }
    __device__ __forceinline__ void load_activations(uint4 (&x)[kDownBatch], int j0, int step) const {
        const T* activation = p.activation + static_cast<size_t>(token) * p.top_k * p.intermediate_size + column(step);
#pragma unroll
        for (int u = 0; u < kDownBatch; ++u)
            if (has(j0 + u, step)) x[u] = load_cached(activation + (j0 + u) * p.intermediate_size);
    }
    __device__ __forceinline__ float multiply(float sum, int stage, int j0, int step,
                                              const uint4 (&x)[kDownBatch]) const {
#pragma unroll
        for (int u = 0; u < kDownBatch; ++u) {
            if (!has(j0 + u, step)) continue;
            float xs[kElements];
            unpack<T>(xs, x[u]);
            const float product = dot<T>(0.0f, shared.weights[stage][u][threadIdx.x], xs);
            sum = fmaf(shared.route.choices[j0 + u].weight, product, sum);
        }
        return sum;
    }
};

// Grid: (H / 4, T). out[t] = sum over j of topk_weight[t, j] * (down @ activation[t, j]), a warp a row.
// gate_up allows it to start when the router's logits are there, which it may thus read ahead of its wait.
template <typename T>
__global__ void __launch_bounds__(kGemvThreads, 4) gemv_down_kernel(Params<T> p) {
    extern __shared__ uint4 shared_memory[];
    DownShared& shared = *reinterpret_cast<DownShared*>(shared_memory);
    const int token = blockIdx.y, row = blockIdx.x * kGemvWarps + threadIdx.x / 32;
    shared.route.find<Reads::kAheadOfWait>(p, token);
    const DownRow<T> down{p, shared, token, row};
    const int num_steps = (p.intermediate_size + 32 * kElements - 1) / (32 * kElements);
    float sum = 0.0f;
    for (int j0 = 0; j0 < p.top_k; j0 += kDownBatch) {
#pragma unroll
        for (int stage = 0; stage < kDownStages; ++stage) down.start_weights(stage, j0, stage);
        if (j0 == 0) wait_for_predecessor();
        if (j0 == 0) allow_successor();
        for (int step = 0; step < num_steps; step += kDownStages) {
            uint4 x[kDownStages][kDownBatch];
#pragma unroll
            for (int stage = 0; stage < kDownStages; ++stage) down.load_activations(x[stage], j0, step + stage);
#pragma unroll
            for (int stage = 0; stage < kDownStages; ++stage) {
                cp_async_wait<kDownStages - 1>();
                sum = down.multiply(sum, stage, j0, step + stage, x[stage]);
                down.start_weights(stage, j0, step + stage + kDownStages);
            }
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) p.out[static_cast<size_t>(token) * p.hidden_size + row] = from_float<T>(sum);
}

}  // namespace qwen3moe::moe
