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
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_query(const SharedTile<T, kHeadDim>& tile, int tile_row,
                                           const AttentionParams<T, kHeadDim>& params, const QueryRows& rows,
                                           int32_t row, const HeadRow& weight, int lane) {
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

}  // namespace qwen3moe
