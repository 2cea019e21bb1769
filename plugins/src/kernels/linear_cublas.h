// Products of many tokens, by cuBLASLt.
#pragma once

#include <cuda_runtime_api.h>

#include "device.h"
#include "qwen3moe/kernels.h"

namespace qwen3moe::linear {

// Enqueues out = x @ weight^T. The first call on a device creates cuBLASLt's handle, which allocates, and the first of
// a shape asks for its algorithm; so a shape has to run once before it is captured. Returns a qwen3moe_status.
int32_t run_cublas(const Device& device, const qwen3moe_linear_shape& shape, const qwen3moe_linear_tensors& tensors,
                   void* workspace, cudaStream_t stream);

}  // namespace qwen3moe::linear
