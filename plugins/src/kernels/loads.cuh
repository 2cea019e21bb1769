// 16-byte loads that say what the caches should keep.
#pragma once

#include <cstdint>

namespace qwen3moe {

// Weights are read once: keep them out of L1, where the activations stay.
__device__ __forceinline__ uint4 load_streaming(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

__device__ __forceinline__ uint4 load_cached(const void* address) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address)
                 : "memory");
    return v;
}

}  // namespace qwen3moe
