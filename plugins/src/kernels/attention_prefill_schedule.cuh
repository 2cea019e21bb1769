// The order in which the persistent prefill kernel takes its tiles of query rows.
#pragma once

#include "attention_tile.cuh"
#include "warp_scan.cuh"

namespace qwen3moe {

// Tiles of kRows query rows of a sequence and key/value head, numbered sequence by sequence; within a sequence late
// rows come first, as they see the most keys, and heads innermost, as they see equally many.
template <int kRows>
struct PrefillSchedule {
    RaggedBatch batch;
    int32_t max_decode_tokens;
    int32_t num_kv_heads;
    int32_t group_size;

    template <typename T, int kHeadDim>
    __device__ __forceinline__ explicit PrefillSchedule(const AttentionParams<T, kHeadDim>& params)
        : batch(params.batch),
          max_decode_tokens(params.max_decode_tokens),
          num_kv_heads(params.num_kv_heads),
          group_size(params.group_size) {}

    // Tile `idx`, for all lanes of a warp; it is empty past the last. Lanes count the tiles of 32 sequences at a time.
    __device__ __forceinline__ PrefillTile find(int32_t idx) const {
        const int lane = threadIdx.x % 32;
        for (int32_t first = 0; first < batch.num_seqs; first += 32) {
            const int32_t own = first + lane < batch.num_seqs ? num_tiles(batch.sequence(first + lane)) : 0;
            const int32_t sum = warp_inclusive_sum(own);
            const unsigned past = __ballot_sync(~0u, idx < sum);
            if (past != 0) {
                const int holder = __ffs(past) - 1;
                const int32_t count = __shfl_sync(~0u, own, holder);
                const int32_t from_end = __shfl_sync(~0u, sum, holder) - 1 - idx;  // of the sequence's tiles
                return tile(batch.sequence(first + holder), count - 1 - from_end, from_end);
            }
            idx -= __shfl_sync(~0u, sum, 31);
        }
        return {{}, 0, true};
    }

   private:
    __device__ __forceinline__ int32_t num_tiles(const Sequence& seq) const {
        return seq.num_new <= max_decode_tokens ? 0 : (seq.num_new * group_size + kRows - 1) / kRows * num_kv_heads;
    }
    __device__ __forceinline__ PrefillTile tile(const Sequence& seq, int32_t from_start, int32_t from_end) const {
        return {{seq, from_start % num_kv_heads, group_size}, from_end / num_kv_heads * kRows, false};
    }
};

}  // namespace qwen3moe
