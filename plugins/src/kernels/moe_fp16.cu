#include "moe_run.cuh"

namespace qwen3moe::moe {

template int32_t run<__half>(const Config&, const qwen3moe_moe_shape&, const qwen3moe_moe_tensors&, void*,
                             cudaStream_t);

}  // namespace qwen3moe::moe
