// The C entry points of MoE: checks at the boundary, then the launches.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <string>

#include "moe_config.h"
#include "moe_params.cuh"
#include "moe_run.h"
#include "status.h"

namespace qwen3moe::moe {
namespace {

constexpr int kHiddenMultiple = 64;    // a K slice of the grouped products
constexpr int kWidthMultiple = 8;      // of I: 16 bytes, a load of any path
constexpr int kPointerAlignment = 16;  // bytes: the width of loads and asynchronous copies

int32_t check_shape(const qwen3moe_moe_shape& s) {
    QWEN3MOE_CHECK_ARG(s.dtype, >=, static_cast<int>(QWEN3MOE_BF16));
    QWEN3MOE_CHECK_ARG(s.dtype, <=, static_cast<int>(QWEN3MOE_FP16));
    QWEN3MOE_CHECK_ARG(s.num_tokens, >=, 0);
    QWEN3MOE_CHECK_ARG(s.hidden_size, >, 0);
    QWEN3MOE_CHECK_ARG(s.hidden_size % kHiddenMultiple, ==, 0);
    QWEN3MOE_CHECK_ARG(s.intermediate_size, >, 0);
    QWEN3MOE_CHECK_ARG(s.intermediate_size % kWidthMultiple, ==, 0);
    QWEN3MOE_CHECK_ARG(s.num_experts, >, 0);
    QWEN3MOE_CHECK_ARG(s.num_experts, <=, kMaxExperts);
    QWEN3MOE_CHECK_ARG(s.num_local_experts, >, 0);
    QWEN3MOE_CHECK_ARG(s.top_k, >, 0);
    QWEN3MOE_CHECK_ARG(s.top_k, <=, std::min(kMaxTopK, s.num_experts));
    QWEN3MOE_CHECK_ARG(s.norm_topk_prob, >=, 0);
    QWEN3MOE_CHECK_ARG(s.norm_topk_prob, <=, 1);
    QWEN3MOE_CHECK_ARG(s.map_rows, >=, 0);
    QWEN3MOE_CHECK_ARG(s.map_rows, <=, 32);  // a lane a row
    QWEN3MOE_CHECK_ARG(s.num_seqs, >=, 0);
    return QWEN3MOE_SUCCESS;
}

int32_t check_pointer(const char* name, const void* pointer) {
    if (pointer == nullptr) return fail(QWEN3MOE_INVALID_ARGUMENT, std::string("MoE: ") + name + " is null");
    if (reinterpret_cast<uintptr_t>(pointer) % kPointerAlignment != 0) {
        return fail(QWEN3MOE_INVALID_ARGUMENT, std::string("MoE: ") + name + " must be aligned to " +
                                                   std::to_string(kPointerAlignment) + " bytes");
    }
    return QWEN3MOE_SUCCESS;
}

int32_t check_tensors(const qwen3moe_moe_tensors& t, const void* workspace) {
    const struct {
        const char* name;
        const void* pointer;
    } arguments[] = {{"hidden", t.hidden},    {"router_logits", t.router_logits}, {"gate_up", t.gate_up},
                     {"down", t.down},        {"expert_map", t.expert_map},       {"out", t.out},
                     {"workspace", workspace}};
    for (const auto& argument : arguments) {
        const int32_t status = check_pointer(argument.name, argument.pointer);
        if (status != QWEN3MOE_SUCCESS) return status;
    }
    return QWEN3MOE_SUCCESS;
}

// Of experts with replicas.
int32_t check_balanced(const qwen3moe_moe_shape& s, const qwen3moe_moe_tensors& t) {
    if (s.map_rows > 0 && t.positions == nullptr) return fail(QWEN3MOE_INVALID_ARGUMENT, "MoE: positions is null");
    if (t.load != nullptr && t.cu_seqlens == nullptr) {
        return fail(QWEN3MOE_INVALID_ARGUMENT, "MoE: cu_seqlens is null");
    }
    return QWEN3MOE_SUCCESS;
}

int32_t check_workspace(const Config& config, size_t needed, size_t given) {
    if (given >= needed) return QWEN3MOE_SUCCESS;
    std::ostringstream message;
    message << "MoE: " << config << " needs " << needed << " bytes of workspace, got " << given;
    return fail(QWEN3MOE_WORKSPACE_TOO_SMALL, message.str());
}

}  // namespace
}  // namespace qwen3moe::moe

extern "C" size_t qwen3moe_moe_workspace_size(const qwen3moe_moe_shape* shape) {
    using namespace qwen3moe::moe;
    if (shape == nullptr || check_shape(*shape) != QWEN3MOE_SUCCESS) return 0;
    return WorkspaceLayout(*shape).size;
}

extern "C" int32_t qwen3moe_moe(const qwen3moe_moe_shape* shape, const qwen3moe_moe_tensors* tensors, void* workspace,
                                size_t workspace_size, qwen3moe_stream stream) {
    using namespace qwen3moe::moe;
    QWEN3MOE_CHECK_ARG(shape, !=, nullptr);
    QWEN3MOE_CHECK_ARG(tensors, !=, nullptr);
    int32_t status = check_shape(*shape);
    if (status != QWEN3MOE_SUCCESS || shape->num_tokens == 0) return status;
    status = check_tensors(*tensors, workspace);
    if (status == QWEN3MOE_SUCCESS) status = check_balanced(*shape, *tensors);
    if (status != QWEN3MOE_SUCCESS) return status;
    qwen3moe::Device device{};
    status = qwen3moe::current_device(&device);
    if (status != QWEN3MOE_SUCCESS) return status;
    const Config config = choose_config(*shape, device);
    status = check_workspace(config, WorkspaceLayout(*shape).size, workspace_size);
    if (status != QWEN3MOE_SUCCESS) return status;
    const auto launch = shape->dtype == QWEN3MOE_BF16 ? run<__nv_bfloat16> : run<__half>;
    return launch(config, *shape, *tensors, workspace, stream);
}
