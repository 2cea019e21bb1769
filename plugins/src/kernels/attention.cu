// qwen3moe_paged_attention: checks the arguments, plans, launches.
#include <cmath>

#include "attention_launch.cuh"
#include "device.h"
#include "mma.cuh"
#include "status.h"

namespace qwen3moe {

namespace {

int32_t check_shape(const qwen3moe_paged_attention_shape* shape) {
    QWEN3MOE_CHECK_ARG(shape, !=, nullptr);
    QWEN3MOE_CHECK_ARG(shape->dtype == QWEN3MOE_BF16 || shape->dtype == QWEN3MOE_FP16, ==, true);
    QWEN3MOE_CHECK_ARG(shape->num_tokens, >=, 0);
    QWEN3MOE_CHECK_ARG(shape->num_seqs, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->num_kv_heads, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->num_heads, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->num_heads % shape->num_kv_heads, ==, 0);
    QWEN3MOE_CHECK_ARG(shape->num_heads / shape->num_kv_heads, <=, DecodeConfig::kRows);
    QWEN3MOE_CHECK_ARG(shape->head_dim == 64 || shape->head_dim == 128, ==, true);
    QWEN3MOE_CHECK_ARG(shape->num_blocks, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->block_size == 16 || shape->block_size == 32 || shape->block_size == 64, ==, true);
    QWEN3MOE_CHECK_ARG(shape->max_blocks, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->num_positions, >=, 1);
    QWEN3MOE_CHECK_ARG(shape->scale, >, 0.0f);
    QWEN3MOE_CHECK_ARG(shape->eps, >=, 0.0f);
    // Grids and row indices are 32-bit.
    QWEN3MOE_CHECK_ARG(int64_t{shape->num_tokens} * shape->num_heads, <=, INT32_MAX);
    QWEN3MOE_CHECK_ARG(int64_t{shape->num_seqs} * shape->num_kv_heads, <=, INT32_MAX / 64);
    QWEN3MOE_CHECK_ARG(int64_t{shape->max_blocks} * shape->block_size, <=, INT32_MAX / 2);
    return QWEN3MOE_SUCCESS;
}

int32_t check_pointer(const char* name, const void* pointer) {
    if (pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0) return QWEN3MOE_SUCCESS;
    std::ostringstream message;
    message << "paged_attention: expected " << name << " at a non-null address divisible by 16, got " << pointer;
    return fail(QWEN3MOE_INVALID_ARGUMENT, message.str());
}

int32_t check_tensors(const qwen3moe_paged_attention_tensors* tensors) {
    QWEN3MOE_CHECK_ARG(tensors, !=, nullptr);
    const struct {
        const char* name;
        const void* pointer;
    } vectors[] = {{"qkv", tensors->qkv},
                   {"q_norm_weight", tensors->q_norm_weight},
                   {"k_norm_weight", tensors->k_norm_weight},
                   {"cos_sin_cache", tensors->cos_sin_cache},
                   {"kv_cache", tensors->kv_cache},
                   {"out", tensors->out}};
    for (const auto& vector : vectors)
        if (const int32_t status = check_pointer(vector.name, vector.pointer)) return status;
    QWEN3MOE_CHECK_ARG(static_cast<const void*>(tensors->positions), !=, nullptr);
    QWEN3MOE_CHECK_ARG(static_cast<const void*>(tensors->block_table), !=, nullptr);
    QWEN3MOE_CHECK_ARG(static_cast<const void*>(tensors->cu_seqlens), !=, nullptr);
    QWEN3MOE_CHECK_ARG(static_cast<const void*>(tensors->context_lens), !=, nullptr);
    return QWEN3MOE_SUCCESS;
}

int32_t check_workspace(const AttentionPlan& plan, const void* workspace, size_t workspace_size) {
    if (workspace_size < plan.workspace_size) {
        std::ostringstream message;
        message << "paged_attention: workspace of " << workspace_size << " bytes is too small for " << plan;
        return fail(QWEN3MOE_WORKSPACE_TOO_SMALL, message.str());
    }
    return check_pointer("workspace", workspace);
}

template <typename T, int kHeadDim>
AttentionParams<T, kHeadDim> make_params(const qwen3moe_paged_attention_shape& shape,
                                         const qwen3moe_paged_attention_tensors& tensors, const AttentionPlan& plan) {
    constexpr float kLog2E = 1.4426950408889634f;
    const int32_t log2_block_size = shape.block_size == 16 ? 4 : shape.block_size == 32 ? 5 : 6;
    return {static_cast<const T*>(tensors.qkv),
            static_cast<const T*>(tensors.q_norm_weight),
            static_cast<const T*>(tensors.k_norm_weight),
            tensors.cos_sin_cache,
            tensors.positions,
            static_cast<T*>(tensors.out),
            {static_cast<T*>(tensors.kv_cache), tensors.block_table, shape.max_blocks, shape.num_kv_heads,
             log2_block_size, shape.num_blocks},
            {tensors.cu_seqlens, tensors.context_lens, shape.num_seqs, shape.num_tokens},
            shape.num_heads,
            shape.num_kv_heads,
            shape.num_heads / shape.num_kv_heads,
            plan.max_decode_tokens,
            shape.scale * kLog2E,
            shape.eps};
}

template <typename T, int kHeadDim>
int32_t launch(const qwen3moe_paged_attention_shape& shape, const qwen3moe_paged_attention_tensors& tensors,
               const AttentionPlan& plan, const Device& device, void* workspace, cudaStream_t stream) {
    const AttentionParams<T, kHeadDim> params = make_params<T, kHeadDim>(shape, tensors, plan);
    if (plan.prefill_rows != 0) {
        const auto next_tile = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + plan.next_tile_offset);
        QWEN3MOE_CHECK_CUDA((launch_append<T, kHeadDim>(params, device, next_tile, stream)));
        QWEN3MOE_CHECK_CUDA(plan.is_hopper
                                ? (launch_prefill_hopper<T, kHeadDim>(params, plan, device, next_tile, stream))
                                : (launch_prefill<T, kHeadDim>(params, plan, stream)));
    }
    if (plan.max_decode_tokens != 0)
        QWEN3MOE_CHECK_CUDA((launch_decode<T, kHeadDim>(params, plan, device, workspace, stream)));
    return QWEN3MOE_SUCCESS;
}

template <typename T>
int32_t launch(const qwen3moe_paged_attention_shape& shape, const qwen3moe_paged_attention_tensors& tensors,
               const AttentionPlan& plan, const Device& device, void* workspace, cudaStream_t stream) {
    return shape.head_dim == 64 ? launch<T, 64>(shape, tensors, plan, device, workspace, stream)
                                : launch<T, 128>(shape, tensors, plan, device, workspace, stream);
}

}  // namespace

}  // namespace qwen3moe

extern "C" size_t qwen3moe_paged_attention_workspace_size(const qwen3moe_paged_attention_shape* shape) {
    using namespace qwen3moe;
    if (check_shape(shape) != QWEN3MOE_SUCCESS || shape->num_tokens == 0) return 0;
    return plan_attention(*shape, false).workspace_size;
}

extern "C" int32_t qwen3moe_paged_attention(const qwen3moe_paged_attention_shape* shape,
                                            const qwen3moe_paged_attention_tensors* tensors, void* workspace,
                                            size_t workspace_size, qwen3moe_stream stream) {
    using namespace qwen3moe;
    if (const int32_t status = check_shape(shape)) return status;
    if (shape->num_tokens == 0) return QWEN3MOE_SUCCESS;
    if (const int32_t status = check_tensors(tensors)) return status;
    Device device{};
    if (const int32_t status = current_device(&device)) return status;
    const AttentionPlan plan = plan_attention(*shape, device.compute_capability == 90);
    if (const int32_t status = check_workspace(plan, workspace, workspace_size)) return status;
    const auto launch = shape->dtype == QWEN3MOE_BF16 ? &qwen3moe::launch<__nv_bfloat16> : &qwen3moe::launch<__half>;
    return launch(*shape, *tensors, plan, device, workspace, stream);
}
