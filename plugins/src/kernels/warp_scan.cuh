// Prefix sum over a warp.
#pragma once

namespace qwen3moe {

// Of the lanes up to and with this one. All lanes call.
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const T left = __shfl_up_sync(~0u, value, offset);
        if (lane >= offset) value += left;
    }
    return value;
}

}  // namespace qwen3moe
