// The ragged batch: which tokens are whose, and where they stand in their sequence's context.
#pragma once

#include <cstdint>

namespace qwen3moe {

struct Sequence {
    int32_t idx;
    int32_t first_token;  // in the packed tokens
    int32_t num_new;      // its tokens in this call
    int32_t context_len;  // num_new included

    // Index in the context of new token i, 0 <= i < num_new.
    __device__ __forceinline__ int32_t position(int32_t i) const { return context_len - num_new + i; }
};

struct RaggedBatch {
    const int32_t* cu_seqlens;    // [B + 1]
    const int32_t* context_lens;  // [B]
    int32_t num_seqs;             // B
    int32_t num_tokens;           // T, padding included

    __device__ __forceinline__ int32_t first_padding_token() const { return cu_seqlens[num_seqs]; }

    __device__ __forceinline__ Sequence sequence(int32_t idx) const {
        const int32_t first = cu_seqlens[idx];
        return {idx, first, cu_seqlens[idx + 1] - first, context_lens[idx]};
    }

    // The last sequence whose start(idx) <= value. `start` must not fall with idx, and start(0) <= value.
    template <typename Start>
    __device__ __forceinline__ Sequence last_starting_by(int32_t value, Start start) const {
        int32_t low = 0, high = num_seqs;
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            (start(middle) <= value ? low : high) = middle;
        }
        return sequence(low);
    }

    // The sequence of a token below first_padding_token(); of sequences that start there only the last is not empty.
    __device__ __forceinline__ Sequence sequence_of_token(int32_t token) const {
        return last_starting_by(token, [this](int32_t idx) { return cu_seqlens[idx]; });
    }
};

}  // namespace qwen3moe
