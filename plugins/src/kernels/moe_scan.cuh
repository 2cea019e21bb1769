// Prefix sum over a thread block.
#pragma once

#include "warp_scan.cuh"

namespace qwen3moe::moe {

struct ScanResult {
    int before;  // sum over the threads before this one
    int total;
};

// warp_totals: kThreads / 32 values in shared memory, not in use by another scan.
template <int kThreads>
__device__ __forceinline__ ScanResult block_scan(int value, int* warp_totals) {
    const int lane = threadIdx.x % 32;
    const int inclusive = warp_inclusive_sum(value);
    if (lane == 31) warp_totals[threadIdx.x / 32] = inclusive;
    __syncthreads();
    ScanResult result{inclusive - value, 0};
    for (int warp = 0; warp < kThreads / 32; ++warp) {
        if (warp < static_cast<int>(threadIdx.x) / 32) result.before += warp_totals[warp];
        result.total += warp_totals[warp];
    }
    return result;
}

}  // namespace qwen3moe::moe
