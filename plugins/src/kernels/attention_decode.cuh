// What the decode kernels share: the keys of a CTA, its queries and new tokens, and a warp's pass over its keys.
#pragma once

#include "attention_merge.cuh"
#include "attention_schedule.cuh"

namespace qwen3moe {

// The part of an item's sequence that its CTA works on.
struct DecodeRange {
    int32_t first_row, num_rows;
    int32_t first_position;  // of the first row: all rows see the keys up to here
    int32_t begin, end;      // keys

    __device__ __forceinline__ DecodeRange(const DecodeItem& item, const QueryRows& rows, int32_t tile_tokens) {
        first_row = item.row_tile * tile_tokens * rows.group_size;
        num_rows = min(tile_tokens * rows.group_size, rows.count() - first_row);
        first_position = rows.position(first_row);
        const int32_t units = ceil_div(DecodeSchedule::num_units(rows.seq), item.num_splits);
        begin = item.split * units * DecodeConfig::kUnit;
        end = min(begin + units * DecodeConfig::kUnit, rows.position(first_row + num_rows - 1) + 1);
    }
};

// The keys and values of a CTA on their way: a ring of tiles of kKeys for each warp, whose tiles are every kWarps-th.
template <typename T, int kHeadDim>
struct KeyRing {
    T (*ring)[DecodeConfig::kStages][2][DecodeConfig::kKeys * kHeadDim];  // [kWarps]

    __device__ __forceinline__ SharedTile<T, kHeadDim> tile(int warp, int step, int part) const {
        return {ring[warp][step % DecodeConfig::kStages][part]};
    }

    // A new token's row, `offset` keys behind the range's first. Later tiles are read from the cache when it has them.
    __device__ __forceinline__ void put(int32_t offset, const KvVectors& row, int lane) const {
        const int32_t idx = offset / DecodeConfig::kKeys, step = idx / DecodeConfig::kWarps;
        if (step >= DecodeConfig::kStages) return;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const SharedTile<T, kHeadDim> to = tile(idx % DecodeConfig::kWarps, step, part);
            *reinterpret_cast<uint4*>(to.chunk(offset % DecodeConfig::kKeys, lane)) = row.low[part];
            *reinterpret_cast<uint4*>(to.chunk(offset % DecodeConfig::kKeys, lane + kRowLanes<kHeadDim>)) =
                row.high[part];
        }
    }
};

// The range's queries into a tile, and the new tokens whose positions lie in the range into the cache and the ring, in
// one pass so that their loads overlap. Every CTA writes what it is going to read: CTAs of other row tiles may write
// the same bytes, but none waits for another.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_queries_and_append(const SharedTile<T, kHeadDim>& queries,
                                                        const KeyRing<T, kHeadDim>& ring,
                                                        const AttentionParams<T, kHeadDim>& params,
                                                        const QueryRows& rows, const DecodeRange& range) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int lane = threadIdx.x % kLanes;
    const int32_t first_new = max(range.begin - rows.seq.position(0), 0);
    const int32_t num_appended = max(range.end - rows.seq.position(first_new), 0);
    for (int32_t i = threadIdx.x / kLanes; i < range.num_rows + num_appended; i += DecodeConfig::kThreads / kLanes) {
        if (i < range.num_rows) {
            const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
            load_query(queries, i, params, rows, range.first_row + i, weight, lane);
        } else {
            const int32_t token = first_new + i - range.num_rows;
            const KvVectors written = append_token(params, rows.seq, token, rows.kv_head, lane);
            ring.put(rows.seq.position(token) - range.begin, written, lane);
        }
    }
    zero_rows<DecodeConfig::kThreads>(queries, range.num_rows, DecodeConfig::kRows);
}

// One warp's pass over its tiles of the range, kStages of them on their way.
template <typename T, int kHeadDim>
struct WarpStream {
    const AttentionParams<T, kHeadDim>& params;
    const QueryRows& rows;
    const DecodeRange& range;
    const KeyRing<T, kHeadDim>& ring;

    __device__ __forceinline__ int32_t first_key(int step) const {
        return range.begin + (step * DecodeConfig::kWarps + static_cast<int>(threadIdx.x) / 32) * DecodeConfig::kKeys;
    }
    __device__ __forceinline__ SharedTile<T, kHeadDim> tile(int step, KvPart part) const {
        return ring.tile(threadIdx.x / 32, step, static_cast<int>(part));
    }

    // Starts the copy of a tile; zeros from the range's end on, as slots there may hold NaN. Keys from `first_new` on,
    // up to the end, are left out.
    __device__ __forceinline__ void issue(int step, int32_t first_new) const {
        constexpr int kChunks = kHeadDim / kVector, kRowsPerPass = 32 / kChunks;
        static_assert(DecodeConfig::kKeys == kContiguousSlots, "a tile is contiguous");
        const int32_t first = first_key(step);
        const int chunk = threadIdx.x % 32 % kChunks, first_row = threadIdx.x % 32 / kChunks;
        if (first < range.end) {
#pragma unroll
            for (KvPart part : {KvPart::kKey, KvPart::kValue}) {
                const SharedTile<T, kHeadDim> to = tile(step, part);
                const T* source = params.kv.row(part, rows.seq.idx, rows.kv_head, first) + chunk * kVector;
#pragma unroll
                for (int row = first_row; row < DecodeConfig::kKeys; row += kRowsPerPass)
                    if (first + row < first_new || first + row >= range.end)
                        cp_async_16(to.chunk(row, chunk), source + row * kHeadDim, first + row < range.end);
            }
        }
        cp_async_commit();  // also when empty: run() counts groups
    }

    // Ahead of the wait; new tokens come by KeyRing::put.
    __device__ __forceinline__ void start() const {
#pragma unroll
        for (int step = 0; step < DecodeConfig::kStages; ++step) issue(step, rows.seq.position(0));
    }

    __device__ __forceinline__ void run(WarpAttention<T, kHeadDim, 1, DecodeConfig::kKeys>& warp,
                                        const SharedTile<T, kHeadDim>& queries) const {
        using Warp = WarpAttention<T, kHeadDim, 1, DecodeConfig::kKeys>;
        for (int step = 0; first_key(step) < range.end; ++step) {
            cp_async_wait<DecodeConfig::kStages - 1>();
            __syncwarp();
            typename Warp::Scores scores;
            Warp::multiply_keys(scores, queries, 0, tile(step, KvPart::kKey));
            if (first_key(step) + DecodeConfig::kKeys > range.first_position + 1)
                Warp::mask(scores, rows, range.first_row, first_key(step));
            warp.softmax(scores, params.scale_log2);
            warp.multiply_values(scores, tile(step, KvPart::kValue));
            __syncwarp();  // all lanes have read the stage that is filled next
            issue(step + DecodeConfig::kStages, range.end);
        }
        warp.reduce_sums();
    }
};

// Calls body(row, column) for each four columns of the range's rows, shared out among the threads.
template <int kHeadDim, typename Body>
__device__ __forceinline__ void for_each_vector(int32_t num_rows, Body body) {
    for (int i = threadIdx.x; i < num_rows * (kHeadDim / 4); i += DecodeConfig::kThreads)
        body(i / (kHeadDim / 4), i % (kHeadDim / 4));
}

__device__ __forceinline__ void prefetch_sector(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// A decode step's metadata is read one thing behind the other: which tokens, how long, which blocks. Weights have
// driven it out of L2 since the layer before, and keep memory busy while this kernel starts: 6 us on an H200. So the
// metadata of what is most often the CTA's sequence, of one new token, is fetched at once.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prefetch_metadata(const AttentionParams<T, kHeadDim>& params, int32_t row_tile) {
    const int32_t seq = min(row_tile, params.batch.num_seqs - 1), thread = threadIdx.x;
    for (int32_t i = thread * 8; i < params.kv.max_blocks; i += DecodeConfig::kThreads * 8)
        prefetch_sector(params.kv.block_table + int64_t{seq} * params.kv.max_blocks + i);
    if (thread == 0) prefetch_sector(params.positions + min(row_tile, params.batch.num_tokens - 1));
}

// What the rows of queries and keys are multiplied with differs from layer to layer, or lies far apart: from memory it
// would come a microsecond later than the rows do.
template <typename T, int kHeadDim>
struct RowOperands {
    static constexpr int kNormLanes = kHeadDim / 16, kRotaryLanes = kHeadDim / 8;  // of 32 bytes, a sector

    const AttentionParams<T, kHeadDim>& params;
    const float* rotary = nullptr;  // this thread's sector

    __device__ __forceinline__ RowOperands(const AttentionParams<T, kHeadDim>& given, const QueryRows& rows,
                                           const DecodeRange& range)
        : params(given) {
        const int thread = static_cast<int>(threadIdx.x) - 64, row = thread / kRotaryLanes * rows.group_size;
        if (thread >= 0 && row < range.num_rows)
            rotary = params.rotary_row(rows.token(range.first_row + row)) + thread % kRotaryLanes * 8;
    }
    __device__ __forceinline__ void prefetch() const {
        const int thread = threadIdx.x;
        if (thread < kNormLanes) prefetch_sector(params.q_norm_weight + thread * 16);
        if (thread >= 32 && thread < 32 + kNormLanes) prefetch_sector(params.k_norm_weight + (thread - 32) * 16);
        if (rotary != nullptr) prefetch_sector(rotary);
    }
};

// The partial result of a CTA's warps, four columns of a row.
template <int kHeadDim>
__device__ __forceinline__ float4 merge_warps(const WarpPartial<kHeadDim> (&partials)[DecodeConfig::kWarps], int row,
                                              int column, MaxSum& total) {
#pragma unroll
    for (const auto& partial : partials) total.merge(partial.max_sum[row]);
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (const auto& partial : partials)
        add_weighted(sum, total.weight(partial.max_sum[row].x),
                     *reinterpret_cast<const float4*>(&partial.out[row][4 * column]));
    return sum;
}

}  // namespace qwen3moe
