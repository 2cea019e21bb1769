// The C entry points of Linear: checks at the boundary, then one product.
#include "linear_cublas.h"
#include "linear_gemv.cuh"
#include "status.h"

namespace qwen3moe::linear {
namespace {

constexpr int kPointerAlignment = 16;  // bytes: the width of loads, and what cuBLASLt is told

int32_t check_shape(const qwen3moe_linear_shape& s) {
    QWEN3MOE_CHECK_ARG(s.dtype, >=, static_cast<int>(QWEN3MOE_BF16));
    QWEN3MOE_CHECK_ARG(s.dtype, <=, static_cast<int>(QWEN3MOE_FP16));
    QWEN3MOE_CHECK_ARG(s.out_float32, >=, 0);
    QWEN3MOE_CHECK_ARG(s.out_float32, <=, 1);
    QWEN3MOE_CHECK_ARG(s.num_tokens, >=, 0);
    QWEN3MOE_CHECK_ARG(s.in_features, >, 0);
    QWEN3MOE_CHECK_ARG(s.in_features % kElements, ==, 0);
    QWEN3MOE_CHECK_ARG(s.out_features, >, 0);
    QWEN3MOE_CHECK_ARG(s.out_features % kElements, ==, 0);
    return QWEN3MOE_SUCCESS;
}

int32_t check_tensors(const qwen3moe_linear_tensors& tensors) {
    for (const void* pointer : {tensors.x, tensors.weight, static_cast<const void*>(tensors.out)}) {
        QWEN3MOE_CHECK_ARG(pointer, !=, nullptr);
        QWEN3MOE_CHECK_ARG(reinterpret_cast<uintptr_t>(pointer) % kPointerAlignment, ==, 0);
    }
    return QWEN3MOE_SUCCESS;
}

size_t workspace_size(const qwen3moe_linear_shape& shape) {
    return choose_path(shape) == Path::kCublas ? kCublasWorkspace : 0;
}

template <typename T, typename Out>
int32_t run_gemv(const Config& config, const qwen3moe_linear_shape& shape, const qwen3moe_linear_tensors& tensors,
                 cudaStream_t stream) {
    const GemvParams<T, Out> params{static_cast<const T*>(tensors.x),
                                    static_cast<const T*>(tensors.weight),
                                    static_cast<Out*>(tensors.out),
                                    shape.num_tokens,
                                    shape.in_features,
                                    shape.out_features};
    QWEN3MOE_CHECK_CUDA(launch_gemv(config, params, stream));
    return QWEN3MOE_SUCCESS;
}

int32_t run(const Config& config, const Device& device, const qwen3moe_linear_shape& shape,
            const qwen3moe_linear_tensors& tensors, void* workspace, cudaStream_t stream) {
    if (config.path == Path::kCublas) return run_cublas(device, shape, tensors, workspace, stream);
    const auto bf16 = shape.out_float32 ? run_gemv<__nv_bfloat16, float> : run_gemv<__nv_bfloat16, __nv_bfloat16>;
    const auto fp16 = shape.out_float32 ? run_gemv<__half, float> : run_gemv<__half, __half>;
    return (shape.dtype == QWEN3MOE_BF16 ? bf16 : fp16)(config, shape, tensors, stream);
}

}  // namespace
}  // namespace qwen3moe::linear

extern "C" size_t qwen3moe_linear_workspace_size(const qwen3moe_linear_shape* shape) {
    using namespace qwen3moe::linear;
    return shape == nullptr || check_shape(*shape) != QWEN3MOE_SUCCESS ? 0 : workspace_size(*shape);
}

extern "C" int32_t qwen3moe_linear(const qwen3moe_linear_shape* shape, const qwen3moe_linear_tensors* tensors,
                                   void* workspace, size_t given_size, qwen3moe_stream stream) {
    using namespace qwen3moe::linear;
    QWEN3MOE_CHECK_ARG(shape, !=, nullptr);
    QWEN3MOE_CHECK_ARG(tensors, !=, nullptr);
    if (const int32_t status = check_shape(*shape)) return status;
    if (shape->num_tokens == 0) return QWEN3MOE_SUCCESS;
    if (const int32_t status = check_tensors(*tensors)) return status;
    qwen3moe::Device device{};
    if (const int32_t status = qwen3moe::current_device(&device)) return status;
    const Config config = choose_config(*shape, device);
    if (given_size < workspace_size(*shape)) {
        std::ostringstream message;
        message << "Linear: " << config << " needs " << workspace_size(*shape) << " bytes of workspace, got "
                << given_size;
        return qwen3moe::fail(QWEN3MOE_WORKSPACE_TOO_SMALL, message.str());
    }
    return run(config, device, *shape, *tensors, workspace, stream);
}
