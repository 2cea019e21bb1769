// The paged key/value cache: the one owner of its layout arithmetic.
//
// kv_cache [num_blocks, 2, Hkv, block_size, D]: a block holds the keys of all its slots, head by head, then the values.
// Index p of sequence b (see ops.py) lies in block block_table[b, p / block_size], slot p % block_size.
#pragma once

#include <cstdint>

namespace qwen3moe {

enum class KvPart : int32_t { kKey = 0, kValue = 1 };

// Block sizes are multiples of 16, so that 16 indices from a multiple of 16 on lie in one block and are contiguous
// there.
constexpr int32_t kContiguousSlots = 16;

template <typename T, int kHeadDim>
struct PagedKv {
    T* data;                     // [num_blocks, 2, Hkv, block_size, D]
    const int32_t* block_table;  // [B, max_blocks]
    int32_t max_blocks;
    int32_t num_kv_heads;
    int32_t log2_block_size;
    int32_t num_blocks;

    int64_t num_rows() const { return (int64_t{num_blocks} * 2 * num_kv_heads) << log2_block_size; }

    // The row of index `position` of sequence `seq`, counted in rows [D] of the whole cache. Reads the block table, so
    // `position` must be in the context. 64-bit throughout: a cache of 80 GB has 4e10 elements.
    __device__ __forceinline__ int64_t row_idx(KvPart part, int32_t seq, int32_t kv_head, int32_t position) const {
        const int64_t block = block_table[int64_t{seq} * max_blocks + (position >> log2_block_size)];
        const int64_t head = (block * 2 + static_cast<int32_t>(part)) * num_kv_heads + kv_head;
        const int32_t slot = position & ((1 << log2_block_size) - 1);
        return (head << log2_block_size) + slot;
    }
    // From a row of keys to that of the values of the same index.
    __device__ __forceinline__ int64_t rows_to_value() const { return int64_t{num_kv_heads} << log2_block_size; }
    __device__ __forceinline__ T* row(KvPart part, int32_t seq, int32_t kv_head, int32_t position) const {
        return data + row_idx(part, seq, kv_head, position) * kHeadDim;
    }
};

}  // namespace qwen3moe
