// Clusters of thread blocks (sm_90): blocks that run together, and reach into each other's shared memory.
#pragma once

#include <cstdint>

namespace qwen3moe {

__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster call both; what they wrote ahead of arriving is visible behind the wait. Another block's
// shared memory may be touched once it is known to run, and not when it may have ended.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Both halves as threads call them whose warps have parted, where nothing that was written needs to be seen: that every
// block runs, or is done with the others' memory.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait_parted() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

// The same variable in the shared memory of the block of `rank`.
template <typename T>
__device__ __forceinline__ T* shared_of(T* variable, int rank) {
    uint64_t address;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(variable), "r"(rank));
    return reinterpret_cast<T*>(address);
}

}  // namespace qwen3moe
