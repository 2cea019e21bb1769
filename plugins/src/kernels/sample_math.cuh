// The arithmetic of the sampling rule in sample.cu, as exact as it says: each fp32 operation is rounded by itself.
#pragma once

#include <cstdint>

#include "warp_scan.cuh"

namespace qwen3moe::sample {

using u64 = unsigned long long;

constexpr int kIndexBits = 18;  // vocab_size up to 262144
constexpr int kPlaceBits = 32 + kIndexBits;
constexpr float kLog2E = 1.44269504f;

// Without NaN.
__device__ __forceinline__ float clean(float logit) { return logit == logit ? logit : -__int_as_float(0x7f800000); }

// A token's place in the order of the rule, the first token having the greatest: its logit's bits, made to compare as
// unsigned (-0 as 0), then the complement of its index.
__device__ __forceinline__ u64 place_in_order(float logit, int index) {
    const uint32_t bits = __float_as_uint(__fadd_rn(clean(logit), 0.0f));
    const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(key) << kIndexBits | ((1u << kIndexBits) - 1 - index);
}

__device__ __forceinline__ float logit_of_key(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ int index_of_place(u64 place) {
    return static_cast<int>((1u << kIndexBits) - 1 - (place & ((1u << kIndexBits) - 1)));
}

// 2^t for -40 <= t <= 0: the Taylor polynomial of degree 6 around the nearest whole number, within 2e-7. Adding 1.5 *
// 2^23 leaves that number in the low bits, at the speed of an addition.
__device__ __forceinline__ float exp2_rule(float t) {
    const float shifted = __fadd_rn(t, 12582912.0f);
    const float x = __fsub_rn(t, __fsub_rn(shifted, 12582912.0f));
    float sum = 1.5403530e-4f;
    sum = __fadd_rn(__fmul_rn(sum, x), 1.3333558e-3f);
    sum = __fadd_rn(__fmul_rn(sum, x), 9.6181291e-3f);
    sum = __fadd_rn(__fmul_rn(sum, x), 5.5504109e-2f);
    sum = __fadd_rn(__fmul_rn(sum, x), 2.4022651e-1f);
    sum = __fadd_rn(__fmul_rn(sum, x), 6.9314718e-1f);
    sum = __fadd_rn(__fmul_rn(sum, x), 1.0f);
    const int whole = __float_as_int(shifted) - __float_as_int(12582912.0f);
    return __fmul_rn(sum, __int_as_float((whole + 127) << 23));
}

// Step 4 of the rule: at most 2^40, so that the sum over a vocabulary stays below 2^59.
__device__ __forceinline__ u64 weight(float logit, float max_logit, float scale, float min_p) {
    const float t = __fmul_rn(__fsub_rn(logit, max_logit), scale);
    if (!(t >= -40.0f)) return 0;
    const float e = exp2_rule(t);
    return e < min_p ? 0 : __float2ull_rz(__fmul_rn(e, 1099511627776.0f));
}

// The least whole number that is not below fraction * total, and 1 at least.
__device__ __forceinline__ u64 part_of(u64 total, float fraction) {
    const double product = __dmul_rn(static_cast<double>(fraction), __ull2double_rn(total));
    return product > 1.0 ? __double2ull_ru(product) : 1;
}

// The first two words of Philox4x32-10 (Salmon et al., 2011), the first word low.
__device__ __forceinline__ u64 philox(u64 seed, u64 offset) {
    uint32_t c0 = static_cast<uint32_t>(offset), c1 = static_cast<uint32_t>(offset >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const u64 first = static_cast<u64>(0xD2511F53u) * c0, second = static_cast<u64>(0xCD9E8D57u) * c2;
        c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(second);
        c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(first);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return static_cast<u64>(c1) << 32 | c0;
}

__device__ __forceinline__ u64 warp_sum(u64 value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

__device__ __forceinline__ u64 warp_max(u64 value) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const u64 other = __shfl_xor_sync(~0u, value, offset);
        if (other > value) value = other;
    }
    return value;
}

// Adds to a sum in shared memory, which has atomics of 32 bits alone: the first one's old value tells of the carry.
__device__ __forceinline__ void add_to_shared(u64* sum, u64 value) {
    uint32_t* words = reinterpret_cast<uint32_t*>(sum);
    const uint32_t low = static_cast<uint32_t>(value);
    const uint32_t old = atomicAdd(words, low);
    const uint32_t high = static_cast<uint32_t>(value >> 32) + (old + low < old);
    if (high != 0) atomicAdd(words + 1, high);
}

}  // namespace qwen3moe::sample
