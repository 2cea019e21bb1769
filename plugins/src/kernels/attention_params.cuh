// The operands of PagedAttention as its kernels take them.
// T tokens, Hq query heads, Hkv key/value heads, G = Hq / Hkv, D head_dim (kHeadDim).
#pragma once

#include "attention_batch.cuh"
#include "paged_kv.cuh"

namespace qwen3moe {

template <typename T, int kHeadDim>
struct AttentionParams {
    const T* qkv;                // [T, (Hq + 2 Hkv) * D]
    const T* q_norm_weight;      // [D]
    const T* k_norm_weight;      // [D]
    const float* cos_sin_cache;  // [P, D]
    const int32_t* positions;    // [T]
    T* out;                      // [T, Hq * D]
    PagedKv<T, kHeadDim> kv;
    RaggedBatch batch;
    int32_t num_heads;          // Hq
    int32_t num_kv_heads;       // Hkv
    int32_t group_size;         // G
    int32_t max_decode_tokens;  // a sequence with more new tokens than this is the prefill kernel's
    float scale_log2;           // scale * log2(e): the softmax is computed in powers of two
    float eps;

    // Row [D] of the packed input: query heads first, then keys, then values.
    __device__ __forceinline__ const T* qkv_row(int32_t token, int32_t head) const {
        return qkv + (int64_t{token} * (num_heads + 2 * num_kv_heads) + head) * kHeadDim;
    }
    __device__ __forceinline__ const float* rotary_row(int32_t token) const {
        return cos_sin_cache + int64_t{positions[token]} * kHeadDim;
    }
    __device__ __forceinline__ T* out_row(int32_t token, int32_t head) const {
        return out + (int64_t{token} * num_heads + head) * kHeadDim;
    }
};

// The queries of one sequence that share a key/value head, as rows: row r is new token r / G, query head r % G of the
// group. Heads of a token are adjacent, so that a tile of rows reads each key once for all of them.
struct QueryRows {
    Sequence seq;
    int32_t kv_head;
    int32_t group_size;  // G

    __device__ __forceinline__ int32_t count() const { return seq.num_new * group_size; }
    __device__ __forceinline__ int32_t token(int32_t row) const { return seq.first_token + row / group_size; }
    __device__ __forceinline__ int32_t head(int32_t row) const { return kv_head * group_size + row % group_size; }
    __device__ __forceinline__ int32_t position(int32_t row) const { return seq.position(row / group_size); }
};

}  // namespace qwen3moe
