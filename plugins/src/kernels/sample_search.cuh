// Thresholds in a row without sorting it: radix search on a token's place in the order, 50 bits in five digits, by
// histograms of masses.
#pragma once

#include "sample_row.cuh"

namespace qwen3moe::sample {

constexpr int kBinsPerThread = kBins / kThreads;

// The sum over the block of each thread's `value`, and in `before` the sum over the threads before this one.
inline __device__ u64 block_exclusive_sum(Shared& shared, u64 value, u64* before) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u64 inclusive = warp_inclusive_sum(value);
    if (lane == 31) shared.warp_values[warp] = inclusive;
    __syncthreads();
    u64 total = 0, warps_before = 0;
    for (int i = 0; i < kWarps; ++i) {
        if (i == warp) warps_before = total;
        total += shared.warp_values[i];
    }
    *before = warps_before + inclusive - value;
    __syncthreads();
    return total;
}

inline __device__ u64 block_sum_of_bins(Shared& shared) {
    u64 own = 0, before;
    for (int i = threadIdx.x; i < kBins; i += kThreads) own += shared.bins[i];
    return block_exclusive_sum(shared, own, &before);
}

// The place of the row's largest logit, which holds the greedy token's index.
inline __device__ u64 find_greatest(const Piece& piece, RowGroup& group, Shared& shared) {
    u64 greatest = 0;
    piece.for_each([&](u64 place) { greatest = max(greatest, place); });
    greatest = warp_max(greatest);
    if (threadIdx.x % 32 == 0) shared.warp_values[threadIdx.x / 32] = greatest;
    __syncthreads();
    for (int i = 0; i < kWarps; ++i) greatest = max(greatest, shared.warp_values[i]);
    __syncthreads();
    if (group.alone()) return greatest;
    group.clear_next_histogram();
    return group.exchange_max(greatest);
}

// The histogram of one digit, over the whole row: masses of the tokens whose place begins with `prefix`.
inline __device__ void count_digit(const Piece& piece, const Mass& mass, u64 prefix, int shift, int bits,
                                   RowGroup& group, Shared& shared) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    piece.for_each([&](u64 place) {
        if (place >> (shift + bits) != prefix) return;
        const u64 own = mass(place);
        if (own != 0) add_to_shared(&shared.bins[(place >> shift) & ((1 << bits) - 1)], own);
    });
    __syncthreads();
    group.add_bins(shared.bins);
    __syncthreads();
}

// From the highest digit down, the first at which `above` and the masses so far reach `target`. Returns the digit and
// makes `above` the mass above it.
inline __device__ u64 find_digit(Shared& shared, u64 target, u64* above) {
    const int first = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    u64 own = 0, before = 0;
    for (int i = 0; i < kBinsPerThread; ++i) own += shared.bins[first - i];
    block_exclusive_sum(shared, own, &before);
    before += *above;
    for (int i = 0; i < kBinsPerThread; ++i) {
        const u64 mass = shared.bins[first - i];
        if (before < target && target <= before + mass) {
            shared.digit = first - i;
            shared.above = before;
        }
        before += mass;
    }
    __syncthreads();
    *above = shared.above;
    return shared.digit;
}

// The place of the last token of the shortest beginning of the order whose mass is at least `fraction` of the row's, or
// at least `count` where the mass is a count.
inline __device__ u64 find_boundary(const Piece& piece, const Mass& mass, float fraction, u64 count, RowGroup& group,
                                    Shared& shared) {
    u64 prefix = 0, above = 0, target = count;
    int shift = kPlaceBits;
    for (const int bits : {11, 11, 10, 9, 9}) {
        const bool first_digit = shift == kPlaceBits;
        shift -= bits;
        count_digit(piece, mass, prefix, shift, bits, group, shared);
        if (first_digit && mass.weighted) target = part_of(block_sum_of_bins(shared), fraction);
        prefix = prefix << bits | find_digit(shared, target, &above);
        const u64 in_digit = shared.bins[prefix & ((1 << bits) - 1)];
        // Whole digits end the search: a sum that fits, or equal tokens that are all needed.
        const bool fits = above + in_digit == target;
        const bool all_equal = shift == kIndexBits && above + in_digit < target + mass.of_key(prefix);
        __syncthreads();
        if (fits || all_equal) break;
    }
    return prefix << shift;
}

}  // namespace qwen3moe::sample
