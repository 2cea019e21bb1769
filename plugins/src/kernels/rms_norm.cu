// RMS normalisation of rows, with the addition of the residual stream where there is one (arXiv:1910.07467).
//
// One block a row: at H = 2048 a row is 4 KiB, which 256 threads read as one 16-byte vector each; sums in fp32.
// Legend: T tokens, H hidden size.
#include "device.h"
#include "launch.cuh"
#include "rms_norm_row.cuh"
#include "status.h"

namespace qwen3moe {

namespace {

using namespace rms_norm;

// x, residual, out, residual_out [T, H]; weight [H]; residual and residual_out may both be null.
// A thread has up to kVectors vectors of the row.
template <typename T, int kVectors>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const Vector<T>* x, const Vector<T>* residual, const Vector<T>* weight, Vector<T>* out,
                    Vector<T>* residual_out, int num_vectors, float eps) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * num_vectors;
    Vector<T> kept[kVectors], factors[kVectors];
    allow_successor();
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index < num_vectors) factors[i] = weight[index];
    }
    wait_for_predecessor();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index >= num_vectors) break;
        kept[i] = x[row + index];
        if (residual != nullptr) {
            const Vector<T> other = residual[row + index];
            for (int j = 0; j < kVector; ++j) {
                kept[i].values[j] = from_float<T>(to_float(kept[i].values[j]) + to_float(other.values[j]));
            }
            residual_out[row + index] = kept[i];
        }
        for (int j = 0; j < kVector; ++j) sum += to_float(kept[i].values[j]) * to_float(kept[i].values[j]);
    }
    const float scale = rsqrtf(block_sum(sum) / static_cast<float>(num_vectors * kVector) + eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int index = threadIdx.x + i * kThreads;
        if (index >= num_vectors) break;
        for (int j = 0; j < kVector; ++j) {
            kept[i].values[j] = from_float<T>(to_float(kept[i].values[j]) * scale * to_float(factors[i].values[j]));
        }
        out[row + index] = kept[i];
    }
}

// Registers for the longest row would leave a multiprocessor two blocks, too few loads on their way: 47 us instead of
// 35 for 8192 rows of 2048 with a residual (H200).
template <typename T>
auto kernel_for(int num_vectors) {
    return num_vectors <= kThreads       ? &rms_norm_kernel<T, 1>
           : num_vectors <= 3 * kThreads ? &rms_norm_kernel<T, 3>
                                         : &rms_norm_kernel<T, kMaxVectors>;
}

template <typename T>
cudaError_t launch(const qwen3moe_rms_norm_shape& shape, const qwen3moe_rms_norm_tensors& tensors, const Device& device,
                   cudaStream_t stream) {
    const Launch launch{dim3(shape.num_tokens), kThreads, 0, stream, device.has_dependent_launch()};
    const int num_vectors = shape.hidden_size / kVector;
    return launch_kernel(kernel_for<T>(num_vectors), launch, static_cast<const Vector<T>*>(tensors.x),
                         static_cast<const Vector<T>*>(tensors.residual), static_cast<const Vector<T>*>(tensors.weight),
                         static_cast<Vector<T>*>(tensors.out), static_cast<Vector<T>*>(tensors.residual_out),
                         num_vectors, shape.eps);
}

}  // namespace

}  // namespace qwen3moe

extern "C" size_t qwen3moe_rms_norm_workspace_size(const qwen3moe_rms_norm_shape*) { return 0; }

extern "C" int32_t qwen3moe_rms_norm(const qwen3moe_rms_norm_shape* shape, const qwen3moe_rms_norm_tensors* tensors,
                                     void*, size_t, qwen3moe_stream stream) {
    QWEN3MOE_CHECK_ARG(shape->num_tokens, >=, 0);
    QWEN3MOE_CHECK_ARG(shape->hidden_size, >, 0);
    QWEN3MOE_CHECK_ARG(shape->hidden_size % qwen3moe::kVector, ==, 0);
    QWEN3MOE_CHECK_ARG(shape->hidden_size, <=, 16384);
    if (shape->num_tokens == 0) return QWEN3MOE_SUCCESS;
    QWEN3MOE_CHECK_ARG(tensors->x, !=, nullptr);
    QWEN3MOE_CHECK_ARG(tensors->weight, !=, nullptr);
    QWEN3MOE_CHECK_ARG(tensors->out, !=, nullptr);
    QWEN3MOE_CHECK_ARG((tensors->residual == nullptr), ==, (tensors->residual_out == nullptr));
    QWEN3MOE_CHECK_ARG(shape->dtype, >=, static_cast<int32_t>(QWEN3MOE_BF16));
    QWEN3MOE_CHECK_ARG(shape->dtype, <=, static_cast<int32_t>(QWEN3MOE_FP16));
    qwen3moe::Device device{};
    if (const int32_t status = qwen3moe::current_device(&device)) return status;
    const auto launch = shape->dtype == QWEN3MOE_BF16 ? &qwen3moe::launch<__nv_bfloat16> : &qwen3moe::launch<__half>;
    QWEN3MOE_CHECK_CUDA(launch(*shape, *tensors, device, stream));
    return QWEN3MOE_SUCCESS;
}
