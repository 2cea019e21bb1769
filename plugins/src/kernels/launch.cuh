// Programmatic dependent launch: a kernel starts while its predecessor drains and waits where it needs its results.
// Saves about 1 us per launch on an H200. On GPUs before sm_90 the device calls are empty and launches are ordinary.
//
// Rules that keep it sound: every thread calls wait_for_predecessor() before it writes anything or exits, and calls
// allow_successor() only after that. So when a kernel starts, everything before its predecessor is complete and visible
// to it even ahead of its own wait; there it may read what its predecessor cannot have written: weights, lengths, block
// tables, keys and values of earlier steps. A predecessor that knows nothing of this lets its successor start when it
// has ended, and a successor that is launched ordinarily waits for the end of all.
#pragma once

#include <cuda_runtime_api.h>

namespace qwen3moe {

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void allow_successor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct Launch {
    dim3 grid;
    int threads;
    size_t shared_bytes;
    cudaStream_t stream;
    bool dependent;  // may start before its predecessor in the stream ends
};

template <typename... Params, typename... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), const Launch& launch, const Args&... args) {
    cudaError_t status = cudaSuccess;
    if (launch.shared_bytes > 48 * 1024) {
        status =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(launch.shared_bytes));
        if (status != cudaSuccess) return status;
    }
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = launch.grid;
    config.blockDim = dim3(launch.threads);
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = launch.stream;
    config.attrs = &attribute;
    config.numAttrs = launch.dependent ? 1 : 0;
    status = cudaLaunchKernelEx(&config, kernel, args...);
    const cudaError_t last = cudaGetLastError();
    return status != cudaSuccess ? status : last;
}

}  // namespace qwen3moe
