// The launchers of PagedAttention's kernels; each returns the error of its launch.
// Instantiated for bf16 and fp16, head_dim 64 and 128, in the kernels' own files.
#pragma once

#include <cuda_runtime_api.h>

#include "attention_params.cuh"
#include "attention_plan.h"
#include "device.h"

namespace qwen3moe {

// Writes the keys and values of the prefill kernel's sequences, and zeroes the padding rows of the output and the count
// of tiles taken.
template <typename T, int kHeadDim>
cudaError_t launch_append(const AttentionParams<T, kHeadDim>& params, const Device& device, int32_t* next_tile,
                          cudaStream_t stream);

// Attention of sequences with more than params.max_decode_tokens new tokens, after launch_append.
template <typename T, int kHeadDim>
cudaError_t launch_prefill(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan, cudaStream_t stream);

// The same where plan.is_hopper. `next_tile` counts the tiles taken.
template <typename T, int kHeadDim>
cudaError_t launch_prefill_hopper(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  const Device& device, int32_t* next_tile, cudaStream_t stream);

// Writes the keys and values, and computes the attention, of all other sequences. If no prefill is planned, zeroes the
// padding rows too: a decode step is this one launch.
template <typename T, int kHeadDim>
cudaError_t launch_decode(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan, const Device& device,
                          void* workspace, cudaStream_t stream);

// The same where plan.cluster_splits is not 0; launch_decode calls it.
template <typename T, int kHeadDim>
cudaError_t launch_decode_cluster(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  cudaStream_t stream);

}  // namespace qwen3moe
