// Clusters of thread blocks (sm_90): blocks that run together, and reach into each other's shared memory.
#pragma once

#include <cstdint>

namespace qwen3moe {

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster call both; what they wrote ahead of arriving is visible behind the wait. Another block's
// shared memory may be touched once it is known to run, and not when it may have ended.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The same variable in the shared memory of the block of `rank`.
template <typename T>
__device__ __forceinline__ T* shared_of(T* variable, unsigned rank) {
    uint64_t address;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(variable), "r"(rank));
    return reinterpret_cast<T*>(address);
}

#endif

}  // namespace qwen3moe
