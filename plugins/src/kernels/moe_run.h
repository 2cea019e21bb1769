// The launches of one MoE call, once per dtype so that the dtypes compile side by side.
#pragma once

#include "moe_config.h"
#include "status.h"

namespace qwen3moe::moe {

template <typename T>
int32_t run(const Config& config, const qwen3moe_moe_shape& shape, const qwen3moe_moe_tensors& tensors, void* workspace,
            cudaStream_t stream);

}  // namespace qwen3moe::moe
