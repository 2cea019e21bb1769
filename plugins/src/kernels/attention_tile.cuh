// Tiles of queries, keys and values in shared memory, and how they are filled.
#pragma once

#include "attention_rows.cuh"

namespace qwen3moe {

// [rows, D] in 16-byte chunks; the chunks of a row are permuted by row % 8 so that the eight rows an ldmatrix phase
// reads at one column lie in distinct banks.
template <typename T, int kHeadDim>
struct SharedTile {
    T* data;

    __device__ __forceinline__ T* chunk(int row, int chunk) const {
        return data + row * kHeadDim + ((chunk ^ (row & 7)) * kVector);
    }

    // This lane's row for an ldmatrix_x4 of the 16 x 16 elements at `row` (a multiple of 16) and column 16 * k,
    // matrices in the order upper left, lower left, upper right, lower right; across: upper left, upper right, lower
    // left, lower right. Written so that what depends on the lane is one constant per k, and `row` an immediate:
    // address arithmetic was a fifth of the prefill kernel's instructions.
    __device__ __forceinline__ const T* lane_row(int row, int k) const {
        const int lane = threadIdx.x % 32;
        return at(lane % 16, lane / 16, row, k);
    }
    __device__ __forceinline__ const T* lane_row_across(int row, int k) const {
        const int lane = threadIdx.x % 32;
        return at(lane / 16 * 8 + lane % 8, lane / 8 % 2, row, k);
    }

   private:
    __device__ __forceinline__ const T* at(int lane_row, int lane_chunk, int row, int k) const {
        const int lane_column = (lane_chunk ^ (lane_row & 7)) * kVector;
        return data + lane_row * kHeadDim + (lane_column ^ 2 * k * kVector) + row * kHeadDim;
    }
};

// Starts the copy of keys (or values) first..first + kKeys - 1 of a sequence by kThreads threads; `first` is a multiple
// of 16. Rows at or past `end` are set to zero and not read: their slots may hold NaN, and 0 * NaN would reach the
// output through the values.
template <int kKeys, int kThreads, typename T, int kHeadDim>
__device__ __forceinline__ void load_kv_tile(const SharedTile<T, kHeadDim>& tile, const PagedKv<T, kHeadDim>& kv,
                                             KvPart part, int32_t seq, int32_t kv_head, int32_t first, int32_t end,
                                             int thread) {
    constexpr int kChunks = kHeadDim / kVector;
    constexpr int kRowsPerPass = kThreads / kChunks;
    static_assert(kContiguousSlots % kRowsPerPass == 0 && kKeys % kContiguousSlots == 0, "whole passes");
    const int chunk = thread % kChunks, thread_row = thread / kChunks;
    const int32_t last_run = (end - 1) / kContiguousSlots * kContiguousSlots;
#pragma unroll
    for (int run = 0; run < kKeys; run += kContiguousSlots) {
        const int32_t position = min(first + run, last_run);  // the table is not read past the context
        const T* source = kv.row(part, seq, kv_head, position) + thread_row * kHeadDim + chunk * kVector;
#pragma unroll
        for (int pass = 0; pass < kContiguousSlots; pass += kRowsPerPass) {
            const int row = run + pass + thread_row;
            T* const destination = kRowsPerPass % 8 == 0 ? tile.chunk(thread_row, chunk) + (run + pass) * kHeadDim
                                                         : tile.chunk(row, chunk);
            cp_async_16(destination, source + pass * kHeadDim, first + row < end);
        }
    }
}

// A normed and rotated query into a row of a tile; D / 16 lanes together.
template <typename Tile, typename T, int kHeadDim>
__device__ __forceinline__ void load_query(const Tile& tile, int tile_row, const AttentionParams<T, kHeadDim>& params,
                                           const QueryRows& rows, int32_t row, const HeadRow& weight, int lane) {
    const int32_t token = rows.token(row);
    HeadRow query = load_row<kHeadDim>(params.qkv_row(token, rows.head(row)), lane);
    norm_and_rotate<kHeadDim>(query, weight, params.rotary_row(token), params.eps, lane);
    *reinterpret_cast<uint4*>(tile.chunk(tile_row, lane)) = pack_vector<T>(query.low);
    *reinterpret_cast<uint4*>(tile.chunk(tile_row, lane + kRowLanes<kHeadDim>)) = pack_vector<T>(query.high);
}

// Zeroes rows begin..end - 1 of a tile, by kThreads threads.
template <int kThreads, typename T, int kHeadDim>
__device__ __forceinline__ void zero_rows(const SharedTile<T, kHeadDim>& tile, int begin, int end) {
    constexpr int kChunks = kHeadDim / kVector;
    for (int i = begin * kChunks + threadIdx.x; i < end * kChunks; i += kThreads)
        *reinterpret_cast<uint4*>(tile.chunk(i / kChunks, i % kChunks)) = uint4{0, 0, 0, 0};
}

// A tile of query rows of one sequence and key/value head: the work of a CTA of the prefill kernels.
struct PrefillTile {
    QueryRows rows;
    int32_t first_row;
    bool is_empty;  // past the sequence's rows, or of a sequence that is the decode kernel's

    // Of this CTA. A sequence of n rows starts at tile floor(rows before it / kRows) + its index (attention_plan.cpp
    // counts them the same way).
    template <int kRows, typename T, int kHeadDim>
    __device__ __forceinline__ static PrefillTile of_block(const AttentionParams<T, kHeadDim>& params) {
        // Late tiles see the most keys: they start first, so that the grid ends with short ones.
        const int32_t kv_head = blockIdx.x % params.num_kv_heads;
        const int32_t tile = (gridDim.x - 1 - blockIdx.x) / params.num_kv_heads;
        const auto first_tile = [&](int32_t idx) {
            return params.batch.cu_seqlens[idx] * params.group_size / kRows + idx;
        };
        const Sequence seq = params.batch.last_starting_by(tile, first_tile);
        const QueryRows rows{seq, kv_head, params.group_size};
        const int32_t first_row = (tile - first_tile(seq.idx)) * kRows;
        return {rows, first_row, seq.num_new <= params.max_decode_tokens || first_row >= rows.count()};
    }

    // One past the last key that any of its kRows rows sees.
    template <int kRows>
    __device__ __forceinline__ int32_t end() const {
        return rows.position(min(first_row + kRows, rows.count()) - 1) + 1;
    }
};

}  // namespace qwen3moe
