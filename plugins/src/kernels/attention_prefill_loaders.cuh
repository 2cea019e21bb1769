// The warps of the Hopper prefill kernel that bring tiles: one copies keys and values, three norm and rotate queries.
#pragma once

#include "attention_prefill_shared.cuh"
#include "launch.cuh"

namespace qwen3moe::prefill {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The boxes of a tile of keys or values, a block's rows of one half each, that this CTA copies, to itself and the
// others: a lane has one. Boxes past the context repeat its last block, as the table is not read further.
template <typename T, int kHeadDim>
struct BoxCopier {
    static constexpr int kHalves = kHeadDim / kHalf;

    const Params<T, kHeadDim>& params;
    const int half, tile_row;  // of the box in a tile

    __device__ __forceinline__ BoxCopier(const Params<T, kHeadDim>& params, int rank)
        : params(params),
          half((threadIdx.x % 32 * kRanks + rank) % kHalves),
          tile_row((threadIdx.x % 32 * kRanks + rank) / kHalves << params.attention.kv.log2_block_size) {}

    // The row of the cache where the box of key tile `idx` begins.
    __device__ __forceinline__ int32_t key_row(const QueryRows& rows, int idx) const {
        const PagedKv<T, kHeadDim>& kv = params.attention.kv;
        const int32_t last_block = (rows.seq.context_len - 1) >> kv.log2_block_size << kv.log2_block_size;
        const int32_t position = min(idx * kKeys + tile_row, last_block);
        return static_cast<int32_t>(kv.row_idx(KvPart::kKey, rows.seq.idx, rows.kv_head, position));
    }
    __device__ __forceinline__ void copy(T* tile, int32_t row, uint64_t* full) const {
        const HalvedTile<T, kHeadDim, kKeys> destination{tile};
        if (threadIdx.x % 32 == 0) mbarrier_arrive_expecting(full, kKeys * kHeadDim * sizeof(T));
        __syncwarp();
        if (tile_row < kKeys)
            copy_box((1 << kRanks) - 1, destination.half(half) + tile_row * kHalf, &params.kv_rows, row, half * kHalf,
                     full);
    }
};

// Values past the context may be NaN, and 0 * NaN would reach the output.
template <typename T, int kHeadDim>
__device__ __forceinline__ void zero_values_from(T* values, int first_row) {
    constexpr int kChunks = kHeadDim / kVector;
    const HalvedTile<T, kHeadDim, kKeys> tile{values};
    for (int i = first_row * kChunks + threadIdx.x % 32; i < kKeys * kChunks; i += 32)
        *reinterpret_cast<uint4*>(tile.chunk(i / kChunks, i % kChunks)) = uint4{0, 0, 0, 0};
    fence_async_proxy();
    __syncwarp();
}

// The copying warp: keys and values of all tiles, in the order in which they are multiplied: keys run one ahead.
template <typename T, int kHeadDim>
struct TileCopier {
    BoxCopier<T, kHeadDim> boxes;
    Shared<T, kHeadDim>& shared;
    Ring<kKeyStages> keys;
    Ring<kValueStages> values;
    unsigned tail_parities = 0;  // a bit a stage

    __device__ __forceinline__ void copy_keys(int32_t row) {
        mbarrier_wait(&shared.keys_empty[keys.stage], keys.parity ^ 1);
        boxes.copy(shared.keys[keys.stage], row, &shared.keys_full[keys.stage]);
        keys.advance();
    }

    // Of the values, the last `num_unseen` are past the context.
    __device__ __forceinline__ void copy_values(int32_t row, int num_unseen) {
        const int stage = values.stage;
        T* const tile = shared.values[stage];
        mbarrier_wait(&shared.values_empty[stage], values.parity ^ 1);
        if (num_unseen <= 0) {
            boxes.copy(tile, row, &shared.values_full[stage]);
        } else {
            boxes.copy(tile, row, &shared.tails_full[stage]);
            mbarrier_wait(&shared.tails_full[stage], tail_parities >> stage & 1);
            tail_parities ^= 1u << stage;
            zero_values_from<T, kHeadDim>(tile, kKeys - num_unseen);
            if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.values_full[stage]);
        }
        values.advance();
    }

    __device__ __forceinline__ void run() {
        wait_for_predecessor();
        cluster_wait_parted();
        const auto to_value = static_cast<int32_t>(boxes.params.attention.kv.rows_to_value());
        for (Ring<kQueryStages> tiles;; tiles.advance()) {
            mbarrier_wait(&shared.tiles_full[tiles.stage], tiles.parity);
            const QueryTile tile = shared.tiles[tiles.stage];
            if (tile.num_key_tiles == 0) return drain();
            int32_t row = boxes.key_row(tile.rows, 0), last_row = 0;
            for (int idx = 0; idx <= tile.num_key_tiles; ++idx) {
                const int32_t next_row = boxes.key_row(tile.rows, idx + 1);  // the table's entry is here when needed
                if (idx < tile.num_key_tiles) copy_keys(row);
                if (idx > 0) copy_values(last_row + to_value, idx * kKeys - tile.rows.seq.context_len);
                last_row = row, row = next_row;
            }
            if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.queries_empty[tiles.stage]);  // `tile` has been read
        }
    }

    // Until all of the cluster are done with this CTA's stages: they arrive here, so it must not end before.
    __device__ __forceinline__ void drain() {
        for (int i = 0; i < kKeyStages; ++i, keys.advance())
            mbarrier_wait(&shared.keys_empty[keys.stage], keys.parity ^ 1);
        for (int i = 0; i < kValueStages; ++i, values.advance())
            mbarrier_wait(&shared.values_empty[values.stage], values.parity ^ 1);
    }
};

// Norms and rotates the rows of a tile, shared out among `num_warps` warps. May run ahead of wait_for_predecessor(), as
// launch_append starts this kernel behind its own: hence loads past L1. All of a lane's queries are on their way at
// once, in place: row by row, three warps would take longer than the products of the shorter tiles. Its rows follow on
// each other, as heads of a token share the rotation.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_queries(const AttentionParams<T, kHeadDim>& params, const QueryTile& tile,
                                                T* queries, int warp, int num_warps) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int lane = threadIdx.x % kLanes, run = (kRows * kLanes + num_warps * 32 - 1) / (num_warps * 32);
    const int first = (warp * 32 + threadIdx.x % 32) / kLanes * run, last = min(first + run, kRows);
    const int count = min(tile.rows.count() - tile.first_row, last);
    const HalvedTile<T, kHeadDim, kRows> destination{queries};
    for (int i = first; i < last; ++i) {
        const int32_t row = i < count ? tile.first_row + i : 0;
        const T* source = params.qkv_row(tile.rows.token(row), tile.rows.head(row)) + lane * kVector;
        cp_async_16(destination.chunk(i, lane), source, i < count);
        cp_async_16(destination.chunk(i, lane + kLanes), source + kHeadDim / 2, i < count);
    }
    const auto load_rotation = [&](int32_t token) {
        return load_row<kHeadDim>(params.cos_sin_cache + int64_t{__ldcg(params.positions + token)} * kHeadDim, lane);
    };
    const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
    int32_t token = tile.rows.token(tile.first_row + first), head = (tile.first_row + first) % tile.rows.group_size;
    HeadRow rotation{};
    if (first < count) rotation = load_rotation(token);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = first; i < count; ++i) {
        T *const low = destination.chunk(i, lane), *const high = destination.chunk(i, lane + kLanes);
        HeadRow query;
        load_vector(query.low, low);
        load_vector(query.high, high);
        norm_and_rotate<kHeadDim>(query, weight, rotation, params.eps);
        *reinterpret_cast<uint4*>(low) = pack_vector<T>(query.low);
        *reinterpret_cast<uint4*>(high) = pack_vector<T>(query.high);
        if (++head == tile.rows.group_size && i + 1 < count) head = 0, rotation = load_rotation(++token);
    }
    fence_async_proxy();
    __syncwarp();
}

// The first tile's queries, by all warps but the copying one, which has the keys to bring meanwhile.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_first_queries(const AttentionParams<T, kHeadDim>& params,
                                                      Shared<T, kHeadDim>& shared) {
    const int warp = threadIdx.x / 32;
    mbarrier_wait(&shared.tiles_full[0], 0);
    const QueryTile tile = shared.tiles[0];
    if (tile.num_key_tiles != 0)
        prepare_queries(params, tile, shared.queries[0], warp < kCopyingWarp ? warp : warp - 1, kWarps - 1);
}

// The preparing warps: the queries of all tiles, one tile ahead. The first of them takes the tiles; in a cluster, that
// of its first CTA for all.
template <typename T, int kHeadDim>
struct TilePreparer {
    const Params<T, kHeadDim>& params;
    Shared<T, kHeadDim>& shared;
    Ring<kQueryStages> taken;

    __device__ __forceinline__ void publish(int32_t idx, int stage) const {
        const Schedule schedule(params.attention);
        const QueryTile tile = QueryTile::of(schedule.find(idx), cluster_rank());
        if (threadIdx.x % 32 != 0) return;
        shared.tiles[stage] = tile;
        mbarrier_arrive(&shared.tiles_full[stage]);
    }

    __device__ __forceinline__ int32_t take_idx() {
        int32_t* const idx = &shared.tile_idx[taken.stage];
        uint64_t* const full = &shared.idx_full[taken.stage];
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive_expecting(full, sizeof(int32_t));
            if (cluster_rank() == 0) {
                const int32_t next = static_cast<int32_t>(gridDim.x) / kRanks + atomicAdd(params.next_tile, 1);
                for (int rank = 0; rank < kRanks; ++rank) store_to(rank, idx, next, full);
            }
        }
        __syncwarp();
        mbarrier_wait(full, taken.parity);
        taken.advance();
        return *idx;
    }

    __device__ __forceinline__ void run() {
        const int warp = threadIdx.x / 32 - kFirstPreparingWarp;
        Ring<kQueryStages> tiles;
        if (warp == 0) publish(blockIdx.x / kRanks, tiles.stage);
        prepare_first_queries(params.attention, shared);
        barrier_sync(kFirstBarrier, kFirstThreads);
        wait_for_predecessor();
        cluster_wait_parted();
        while (true) {
            if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.queries_full[tiles.stage]);
            const bool is_last = shared.tiles[tiles.stage].num_key_tiles == 0;
            tiles.advance();
            mbarrier_wait(&shared.queries_empty[tiles.stage], tiles.parity ^ 1);
            if (is_last) return;
            if (warp == 0) publish(take_idx(), tiles.stage);
            mbarrier_wait(&shared.tiles_full[tiles.stage], tiles.parity);
            const QueryTile tile = shared.tiles[tiles.stage];
            if (tile.num_key_tiles != 0)
                prepare_queries(params.attention, tile, shared.queries[tiles.stage], warp, kPreparingWarps);
        }
    }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe::prefill
