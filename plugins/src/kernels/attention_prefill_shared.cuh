// What the warps of the Hopper prefill kernel share: tiles in shared memory, and the barriers that hand them on.
#pragma once

#include "attention_group.cuh"
#include "attention_prefill_schedule.cuh"
#include "cluster.cuh"
#include "hopper.cuh"

namespace qwen3moe::prefill {

constexpr int kGroups = HopperConfig::kGroups;
constexpr int kGroupThreads = 128;
constexpr int kGroupRows = HopperConfig::kGroupRows;
constexpr int kKeys = HopperConfig::kKeys;
constexpr int kRows = HopperConfig::kRows;
constexpr int kRanks = HopperConfig::kRanks;
// At D = 128 a stage is 32 KB: 224 KB in all, one CTA on an SM.
constexpr int kQueryStages = 2, kKeyStages = 3, kValueStages = 2;

// The warps: of each CTA two warpgroups multiply; of a third one warp copies, and three prepare queries.
constexpr int kMultiplyingWarps = kGroups * kGroupThreads / 32;
constexpr int kCopyingWarp = kMultiplyingWarps;
constexpr int kFirstPreparingWarp = kCopyingWarp + 1;
constexpr int kPreparingWarps = 3;
constexpr int kWarps = kFirstPreparingWarp + kPreparingWarps;
constexpr int kThreads = 32 * kWarps;

using Schedule = PrefillSchedule<kRanks * kRows>;

template <typename T, int kHeadDim>
struct Params {
    CUtensorMap kv_rows;  // the cache as rows [D]
    AttentionParams<T, kHeadDim> attention;
    int32_t* next_tile;  // tiles taken so far beyond the first of each cluster
};

// A CTA's share of a cluster's tile. All CTAs of the cluster pass over the keys that the last of them needs.
struct QueryTile {
    QueryRows rows;
    int32_t first_row;      // may be past the last
    int32_t num_key_tiles;  // 0: there are no more tiles

    __device__ __forceinline__ static QueryTile of(const PrefillTile& tile, int rank) {
        return {tile.rows, tile.first_row + rank * kRows,
                tile.is_empty ? 0 : (tile.end<kRanks * kRows>() + kKeys - 1) / kKeys};
    }
};

template <typename T, int kHeadDim>
struct Shared {
    alignas(kWgmmaAlignment) T queries[kQueryStages][kRows * kHeadDim];
    alignas(kWgmmaAlignment) T keys[kKeyStages][kKeys * kHeadDim];
    alignas(kWgmmaAlignment) T values[kValueStages][kKeys * kHeadDim];
    QueryTile tiles[kQueryStages];   // those of `queries`
    int32_t tile_idx[kQueryStages];  // of the next ones
    // full: ready to be read, in this CTA; empty: all multiplying warps of the cluster are done
    uint64_t idx_full[kQueryStages], tiles_full[kQueryStages];
    uint64_t queries_full[kQueryStages], queries_empty[kQueryStages];
    uint64_t keys_full[kKeyStages], keys_empty[kKeyStages];
    uint64_t values_full[kValueStages], values_empty[kValueStages];
    uint64_t tails_full[kValueStages];  // of values that the copying warp has still to work on
};
static_assert(sizeof(Shared<__half, 128>) <= 227 * 1024, "must fit sm_90");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <size_t kStages>
__device__ __forceinline__ void init(uint64_t (&barriers)[kStages], int arrivals) {
    for (uint64_t& barrier : barriers) mbarrier_init(&barrier, arrivals);
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void init_barriers(Shared<T, kHeadDim>& shared) {
    init(shared.idx_full, 1);
    init(shared.tiles_full, 1);
    init(shared.queries_full, kPreparingWarps);
    init(shared.queries_empty, kRanks * kMultiplyingWarps + 1);  // and this CTA's copying warp
    init(shared.keys_full, 1);
    init(shared.keys_empty, kRanks * kMultiplyingWarps);
    init(shared.values_full, 1);
    init(shared.values_empty, kRanks * kMultiplyingWarps);
    init(shared.tails_full, 1);
    fence_barrier_init();
}

// Named barriers; 0 is __syncthreads's.
constexpr int kTurnBarrier = 1;   // + warpgroup: its turn to issue products
constexpr int kGroupBarrier = 3;  // + warpgroup: among itself
constexpr int kFirstBarrier = 5;  // the first tile's queries are prepared
constexpr int kTurnThreads = kGroups * kGroupThreads;
constexpr int kFirstThreads = kThreads - 32;

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// By a warp that is done with a stage, to the barriers of all CTAs of the cluster, whose copies write to all.
__device__ __forceinline__ void release(uint64_t* empty) {
    const int lane = threadIdx.x % 32;
    if (lane == 0) mbarrier_arrive(empty);
    if (lane != 0 && lane < kRanks) mbarrier_arrive_at(empty, cluster_rank() ^ lane);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe::prefill
