// Launches the kernels of a MoE call, chunk by chunk.
#pragma once

#include "moe_combine.cuh"
#include "moe_gemv.cuh"
#include "moe_mma_gemm.cuh"
#include "moe_plan.cuh"
#include "moe_route.cuh"
#include "moe_run.h"
#include "moe_wgmma_gemm.cuh"

namespace qwen3moe::moe {

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <typename T>
Params<T> make_params(const Config& config, const qwen3moe_moe_shape& shape, const qwen3moe_moe_tensors& tensors,
                      void* workspace, int first_token) {
    const WorkspaceLayout layout(shape);
    char* const scratch = static_cast<char*>(workspace);
    const size_t first = first_token;
    Params<T> p{};
    p.num_tokens = std::min(shape.num_tokens - first_token, chunk_tokens(shape));
    p.hidden_size = shape.hidden_size;
    p.intermediate_size = shape.intermediate_size;
    p.num_experts = shape.num_experts;
    p.num_local_experts = shape.num_local_experts;
    p.top_k = shape.top_k;
    p.norm_topk_prob = shape.norm_topk_prob != 0;
    p.tile_rows = config.tile_rows;
    p.num_tiles = max_tiles(p.num_tokens * p.top_k, p.tile_rows, p.num_experts);
    p.map_rows = shape.map_rows;
    p.first_token = first_token;
    p.hidden = static_cast<const T*>(tensors.hidden) + first * shape.hidden_size;
    p.router_logits = static_cast<const T*>(tensors.router_logits) + first * shape.num_experts;
    p.gate_up = static_cast<const T*>(tensors.gate_up);
    p.down = static_cast<const T*>(tensors.down);
    p.expert_map = tensors.expert_map;
    if (tensors.positions != nullptr) p.positions = tensors.positions + first;
    if (tensors.cu_seqlens != nullptr) p.tokens_end = tensors.cu_seqlens + shape.num_seqs;
    p.load = tensors.load;
    p.out = static_cast<T*>(tensors.out) + first * shape.hidden_size;
    p.topk_weight = reinterpret_cast<float*>(scratch + layout.topk_weight);
    p.topk_slot = reinterpret_cast<int*>(scratch + layout.topk_slot);
    p.topk_expert = reinterpret_cast<int16_t*>(scratch + layout.topk_expert);
    p.row_assignment = reinterpret_cast<int*>(scratch + layout.row_assignment);
    p.tiles = reinterpret_cast<Tile*>(scratch + layout.tiles);
    p.counters = reinterpret_cast<int*>(scratch + layout.counters);
    p.activation = reinterpret_cast<T*>(scratch + layout.activation);
    p.expert_out = reinterpret_cast<T*>(scratch + layout.expert_out);
    return p;
}

template <typename T>
cudaError_t run_gemv(const Params<T>& p, bool dependent, cudaStream_t stream) {
    const dim3 gate_up_grid(p.intermediate_size / (kGemvWarps * kGemvFeatures), p.num_tokens * p.top_k);
    const dim3 down_grid(p.hidden_size / kGemvWarps, p.num_tokens);
    cudaError_t status = launch_kernel(gemv_gate_up_kernel<T>, {gate_up_grid, kGemvThreads, 0, stream, dependent}, p);
    if (status != cudaSuccess) return status;
    return launch_kernel(gemv_down_kernel<T>, {down_grid, kGemvThreads, sizeof(DownShared), stream, dependent}, p);
}

template <typename T, int kTileRows>
cudaError_t run_mma(const Params<T>& p, bool dependent, cudaStream_t stream) {
    constexpr size_t kShared = MmaShape<kTileRows>::kSharedBytes;
    const dim3 gate_up_grid(ceil_div(2 * p.intermediate_size, kMmaCols), p.num_tiles);
    const dim3 down_grid(ceil_div(p.hidden_size, kMmaCols), p.num_tiles);
    cudaError_t status = launch_kernel(mma_gemm_kernel<T, Product::kGateUp, kTileRows>,
                                       {gate_up_grid, kMmaThreads, kShared, stream, dependent}, p);
    if (status != cudaSuccess) return status;
    return launch_kernel(mma_gemm_kernel<T, Product::kDown, kTileRows>,
                         {down_grid, kMmaThreads, kShared, stream, dependent}, p);
}

template <typename T, int kTokens>
cudaError_t run_wgmma(const Params<T>& p, int blocks, bool dependent, cudaStream_t stream) {
    const dim3 grid(blocks / kCluster * kCluster);
    const Launch launch{grid, kWgmmaThreads, sizeof(WgmmaShared<kTokens>), stream, dependent, kCluster};
    CUtensorMap gate_up, down;
    cudaError_t status = describe_weights<Product::kGateUp>(&gate_up, p);
    if (status != cudaSuccess) return status;
    status = describe_weights<Product::kDown>(&down, p);
    if (status != cudaSuccess) return status;
    status = launch_kernel(wgmma_gemm_kernel<T, Product::kGateUp, kTokens>, launch, p, gate_up);
    if (status != cudaSuccess) return status;
    return launch_kernel(wgmma_gemm_kernel<T, Product::kDown, kTokens>, launch, p, down);
}

template <typename T>
cudaError_t run_products(const Config& config, const Params<T>& p, cudaStream_t stream) {
    switch (config.tile_rows) {
        case kManyTileRows:
            return run_wgmma<T, kManyTileRows / 2>(p, config.persistent_blocks, config.dependent_launch, stream);
        case kFewTileRows:
            return run_wgmma<T, kFewTileRows / 2>(p, config.persistent_blocks, config.dependent_launch, stream);
        case 16:
            return run_mma<T, 16>(p, config.dependent_launch, stream);
        case 32:
            return run_mma<T, 32>(p, config.dependent_launch, stream);
        case 64:
            return run_mma<T, 64>(p, config.dependent_launch, stream);
        default:
            return run_mma<T, 128>(p, config.dependent_launch, stream);
    }
}

template <typename T>
cudaError_t run_plan(const Params<T>& p, bool dependent, cudaStream_t stream) {
    const Launch plan{dim3(p.num_experts), kPlanThreads, 0, stream, dependent};
    if (p.num_tokens <= kMaxRoutedByPlan) return launch_kernel(plan_kernel<T, true, 1>, plan, p);
    const dim3 route_grid(ceil_div(p.num_tokens, kRouteThreads / 32));
    const cudaError_t status = launch_kernel(route_kernel<T>, {route_grid, kRouteThreads, 0, stream, dependent}, p);
    if (status != cudaSuccess) return status;
    const auto sort =
        p.num_tokens * p.top_k <= kMaxInOneLoad ? plan_kernel<T, false, 1> : plan_kernel<T, false, kPlanBatch>;
    return launch_kernel(sort, plan, p);
}

template <typename T>
int32_t run_chunk(const Config& config, const Params<T>& p, cudaStream_t stream) {
    const bool dependent = config.dependent_launch;
    if (config.path == Path::kGemv) {
        QWEN3MOE_CHECK_CUDA(run_gemv(p, dependent, stream));
        return QWEN3MOE_SUCCESS;
    }
    const dim3 combine_grid(ceil_div(p.hidden_size, kCombineThreads * kCombineCols), p.num_tokens);
    QWEN3MOE_CHECK_CUDA(run_plan(p, dependent, stream));
    QWEN3MOE_CHECK_CUDA(run_products(config, p, stream));
    QWEN3MOE_CHECK_CUDA(launch_kernel(combine_kernel<T>, {combine_grid, kCombineThreads, 0, stream, dependent}, p));
    return QWEN3MOE_SUCCESS;
}

template <typename T>
int32_t run(const Config& config, const qwen3moe_moe_shape& shape, const qwen3moe_moe_tensors& tensors, void* workspace,
            cudaStream_t stream) {
    for (int first_token = 0; first_token < shape.num_tokens; first_token += chunk_tokens(shape)) {
        const Params<T> params = make_params<T>(config, shape, tensors, workspace, first_token);
        const int32_t status = run_chunk(config, params, stream);
        if (status != QWEN3MOE_SUCCESS) return status;
    }
    return QWEN3MOE_SUCCESS;
}

}  // namespace qwen3moe::moe
