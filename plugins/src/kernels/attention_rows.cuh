// Work on single head rows [D]: QK-norm with RoPE, the write of a new token's key and value, zeroing of padding.
//
// A row is held by D / 16 neighbouring lanes. A lane has 8 elements (16 bytes) of the lower half and the 8 that RoPE
// pairs them with, so rotation needs no exchange. Everything is fp32 between the load and the one rounding at the
// store.
#pragma once

#include "attention_params.cuh"
#include "mma.cuh"

namespace qwen3moe {

constexpr int kVector = 8;  // elements of a 16-byte access

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int kHeadDim>
constexpr int kRowLanes = kHeadDim / (2 * kVector);

struct HeadRow {
    float low[kVector];   // elements 8 lane.. of the row
    float high[kVector];  // elements D/2 + 8 lane..
};

template <typename T>
__device__ __forceinline__ void load_vector(float (&x)[kVector], const T* source) {
    const uint4 packed = *reinterpret_cast<const uint4*>(source);
    const T* elements = reinterpret_cast<const T*>(&packed);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = to_float(elements[i]);
}

__device__ __forceinline__ void load_vector(float (&x)[kVector], const float* source) {
    const float4 first = reinterpret_cast<const float4*>(source)[0],
                 second = reinterpret_cast<const float4*>(source)[1];
    x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w;
    x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
}

template <typename T>
__device__ __forceinline__ uint4 pack_vector(const float (&x)[kVector]) {
    return {pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7])};
}

template <int kHeadDim, typename T>
__device__ __forceinline__ HeadRow load_row(const T* source, int lane) {
    HeadRow row;
    load_vector(row.low, source + lane * kVector);
    load_vector(row.high, source + kHeadDim / 2 + lane * kVector);
    return row;
}

// RMS norm over D, then rotation of the pairs (i, i + D/2) by a row of the table: D/2 cosines (low), D/2 sines (high).
// The row's lanes call together.
template <int kHeadDim>
__device__ __forceinline__ void norm_and_rotate(HeadRow& x, const HeadRow& weight, const HeadRow& rotation, float eps) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const unsigned row_mask = ((1u << kLanes) - 1) << (threadIdx.x % 32 / kLanes * kLanes);

    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) squares += x.low[i] * x.low[i] + x.high[i] * x.high[i];
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(row_mask, squares, offset);
    const float inverse_rms = rsqrtf(squares / kHeadDim + eps);

#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        const float low = x.low[i] * inverse_rms * weight.low[i], high = x.high[i] * inverse_rms * weight.high[i];
        x.low[i] = low * rotation.low[i] - high * rotation.high[i];
        x.high[i] = high * rotation.low[i] + low * rotation.high[i];
    }
}

// `lane` is the lane's place in the row.
template <int kHeadDim>
__device__ __forceinline__ void norm_and_rotate(HeadRow& x, const HeadRow& weight, const float* cos_sin, float eps,
                                                int lane) {
    norm_and_rotate<kHeadDim>(x, weight, load_row<kHeadDim>(cos_sin, lane), eps);
}

// A lane's part of a key and a value: 8 elements of the lower half, 8 of the upper.
struct KvVectors {
    uint4 low[2], high[2];  // by KvPart
};

// Norms, rotates and writes the key, and copies the value, of new token i of a sequence; returns what was written.
template <typename T, int kHeadDim>
__device__ __forceinline__ KvVectors append_token(const AttentionParams<T, kHeadDim>& params, const Sequence& seq,
                                                  int32_t i, int32_t kv_head, int lane) {
    const int32_t token = seq.first_token + i, position = seq.position(i);
    const int low = lane * kVector, high = kHeadDim / 2 + low;
    const T* value = params.qkv_row(token, params.num_heads + params.num_kv_heads + kv_head);
    const uint4 value_low = *reinterpret_cast<const uint4*>(value + low);
    const uint4 value_high = *reinterpret_cast<const uint4*>(value + high);
    T* key_slot = params.kv.row(KvPart::kKey, seq.idx, kv_head, position);
    T* value_slot = params.kv.row(KvPart::kValue, seq.idx, kv_head, position);

    HeadRow key = load_row<kHeadDim>(params.qkv_row(token, params.num_heads + kv_head), lane);
    const HeadRow weight = load_row<kHeadDim>(params.k_norm_weight, lane);
    norm_and_rotate<kHeadDim>(key, weight, params.rotary_row(token), params.eps, lane);

    const KvVectors written{{pack_vector<T>(key.low), value_low}, {pack_vector<T>(key.high), value_high}};
    *reinterpret_cast<uint4*>(key_slot + low) = written.low[0];
    *reinterpret_cast<uint4*>(key_slot + high) = written.high[0];
    *reinterpret_cast<uint4*>(value_slot + low) = value_low;
    *reinterpret_cast<uint4*>(value_slot + high) = value_high;
    return written;
}

// Zeroes the rows of `out` of the padding tokens, shared out among the CTAs of the grid.
template <typename T, int kHeadDim>
__device__ __forceinline__ void zero_padding(const AttentionParams<T, kHeadDim>& params) {
    const int32_t vectors = params.num_heads * kHeadDim / kVector;
    for (int32_t token = params.batch.first_padding_token() + blockIdx.x; token < params.batch.num_tokens;
         token += gridDim.x) {
        uint4* row = reinterpret_cast<uint4*>(params.out_row(token, 0));
        for (int32_t i = threadIdx.x; i < vectors; i += blockDim.x) row[i] = uint4{0, 0, 0, 0};
    }
}

}  // namespace qwen3moe
