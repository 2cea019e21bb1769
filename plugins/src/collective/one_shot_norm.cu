// The sum over the ranks, the residual stream and the norm in one kernel: between layers, a launch and a trip through
// memory less. Rounds where AllReduce and AddRMSNorm do, and adds in their order: its results are theirs, bit for bit.
//
// One block a row. A vector of eight elements travels as two packets, whose places are apart so that neighbouring
// threads write neighbouring packets.
#include "../kernels/rms_norm_row.cuh"
#include "one_shot_packets.cuh"

namespace qwen3moe {

namespace {

using namespace rms_norm;

template <typename T>
__device__ __forceinline__ one_shot::Payload<T> half_of(const Vector<T>& vector, int half) {
    one_shot::Payload<T> payload;
    memcpy(&payload.bits, vector.values + half * payload.kElements, sizeof payload.bits);
    return payload;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    one_shot_norm_kernel(const __grid_constant__ OneShotGroup group, const __grid_constant__ OneShotNorm norm) {
    const one_shot::Exchange exchange(group);
    const int num_vectors = norm.hidden_size / kVector;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * num_vectors;
    const auto* x = static_cast<const Vector<T>*>(norm.x) + row;
    const auto* residual = static_cast<const Vector<T>*>(norm.residual) + row;
    const auto* weight = static_cast<const Vector<T>*>(norm.weight);
    auto* out = static_cast<Vector<T>*>(norm.out) + row;
    auto* residual_out = static_cast<Vector<T>*>(norm.residual_out) + row;
    Vector<T> kept[kMaxVectors];
#pragma unroll
    for (int i = 0; i < kMaxVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index >= num_vectors) break;
        kept[i] = x[index];
        for (int half = 0; half < 2; ++half) {
            exchange.give(2 * row + half * num_vectors + index, half_of(kept[i], half));
        }
        asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + index));  // on its way while the packets are
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index >= num_vectors) break;
        const Vector<T> other = residual[index];
        for (int half = 0; half < 2; ++half) {
            const one_shot::Payload<T> total =
                exchange.take(2 * row + half * num_vectors + index, half_of(kept[i], half));
            for (int j = 0; j < total.kElements; ++j) {
                T& value = kept[i].values[half * total.kElements + j];
                value = from_float<T>(total.element(j) + to_float(other.values[half * total.kElements + j]));
                sum += to_float(value) * to_float(value);
            }
        }
        residual_out[index] = kept[i];
    }
    const float scale = rsqrtf(block_sum(sum) / static_cast<float>(num_vectors * kVector) + norm.eps);
#pragma unroll
    for (int i = 0; i < kMaxVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index >= num_vectors) break;
        const Vector<T> factor = weight[index];
        for (int j = 0; j < kVector; ++j) {
            kept[i].values[j] = from_float<T>(to_float(kept[i].values[j]) * scale * to_float(factor.values[j]));
        }
        out[index] = kept[i];
    }
    exchange.end();
}

}  // namespace

cudaError_t one_shot_all_reduce_add_rms_norm(const OneShotGroup& group, const OneShotNorm& norm, qwen3moe_dtype dtype,
                                             cudaStream_t stream) {
    const auto kernel = dtype == QWEN3MOE_BF16 ? one_shot_norm_kernel<__nv_bfloat16> : one_shot_norm_kernel<__half>;
    kernel<<<norm.num_tokens, kThreads, 0, stream>>>(group, norm);
    return cudaGetLastError();
}

}  // namespace qwen3moe
