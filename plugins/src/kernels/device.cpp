#include "device.h"

#include "status.h"

namespace qwen3moe {

int32_t current_device(Device* device) {
    int major = 0, minor = 0;
    QWEN3MOE_CHECK_CUDA(cudaGetDevice(&device->ordinal));
    QWEN3MOE_CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device->ordinal));
    QWEN3MOE_CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device->ordinal));
    QWEN3MOE_CHECK_CUDA(
        cudaDeviceGetAttribute(&device->num_multiprocessors, cudaDevAttrMultiProcessorCount, device->ordinal));
    device->compute_capability = major * 10 + minor;
    return QWEN3MOE_SUCCESS;
}

}  // namespace qwen3moe
