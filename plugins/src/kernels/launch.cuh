// Programmatic dependent launch: a kernel starts while those before it still run, fetches what is constant, and waits
// where it needs their results. On GPUs before sm_90 the device calls are empty and launches are ordinary.
//
// Rules that keep a chain of such kernels sound, whatever is launched before and behind it:
// 1. Every thread calls wait_for_predecessor() before it writes global memory, before it reads what a kernel of the
//    stream wrote, and before it exits. A kernel is thus complete only after all before it, and behind its wait a
//    kernel sees, and may overwrite, everything that went before.
// 2. Ahead of its wait a kernel reads nothing but what kernels.h says is written before: weights, tables, a step's
//    metadata, keys and values of earlier steps; and what rule 3 allows.
// 3. allow_successor() may come at any time. Kernels that call it first thing let the fetches of several successors
//    start early. One that calls it behind its wait starts its successor when everything before itself is complete: the
//    successor may then read that ahead of its own wait, past L1.
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
    bool dependent;        // may start before its predecessor in the stream ends
    unsigned cluster = 1;  // blocks of a cluster, along x
};

constexpr unsigned kPortableCluster = 8;  // what every GPU with clusters places

template <typename... Params, typename... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), const Launch& launch, const Args&... args) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    cudaError_t status = cudaSuccess;
    if (launch.shared_bytes > 48 * 1024) {
        status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(launch.shared_bytes));
        if (status != cudaSuccess) return status;
    }
    // A multiprocessor divides its memory between L1 and shared memory anew only when it is empty: kernels that are to
    // overlap must all want the same division.
    status = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  launch.dependent ? cudaSharedmemCarveoutMaxShared : cudaSharedmemCarveoutDefault);
    if (status != cudaSuccess) return status;
    if (launch.cluster > kPortableCluster) {
        status = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        if (status != cudaSuccess) return status;
    }
    cudaLaunchAttribute attributes[2] = {};
    unsigned num_attributes = 0;
    if (launch.dependent) {
        attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (launch.cluster > 1) {
        attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
        attributes[num_attributes++].val.clusterDim = {launch.cluster, 1, 1};
    }
    cudaLaunchConfig_t config{};
    config.gridDim = launch.grid;
    config.blockDim = dim3(launch.threads);
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = launch.stream;
    config.attrs = attributes;
    config.numAttrs = num_attributes;
    status = cudaLaunchKernelEx(&config, kernel, args...);
    const cudaError_t last = cudaGetLastError();
    return status != cudaSuccess ? status : last;
}

}  // namespace qwen3moe
