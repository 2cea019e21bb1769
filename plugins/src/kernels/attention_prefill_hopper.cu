// Attention of sequences with many new tokens, for sm_90a: a persistent kernel whose CTAs, one on a multiprocessor,
// take tiles of 128 query rows of one sequence and key/value head (FlashAttention-3's shape, arXiv:2407.08608).
//
// Two warpgroups multiply, 64 rows each, passing over the keys that the rows may see in tiles of 128. While one's
// tensor cores multiply, the other computes its softmax: they take turns at issuing. Within a warpgroup the scores of a
// tile are on their way while the values of the tile before are added, also where the tile before is the last of
// another query tile. Of a third warpgroup one warp copies keys and values, and three norm and rotate the next tile's
// queries.
#include <algorithm>

#include "attention_group.cuh"
#include "attention_launch.cuh"
#include "attention_prefill_schedule.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace {

constexpr int kGroups = HopperConfig::kGroups;
constexpr int kGroupThreads = 128;
constexpr int kKeys = HopperConfig::kKeys;
constexpr int kRows = HopperConfig::kRows;
constexpr int kStages = 2;  // of queries, keys and values: 6 * 32 KB at D = 128, one CTA on an SM
constexpr int kWarps = (kGroups + 1) * kGroupThreads / 32;
constexpr int kThreads = 32 * kWarps;

template <typename T, int kHeadDim>
struct HopperParams {
    CUtensorMap kv_rows;  // the cache as rows [D]
    AttentionParams<T, kHeadDim> attention;
    int32_t* next_tile;  // tiles taken so far beyond the first of each CTA
};

template <typename T, int kHeadDim>
struct PrefillShared {
    alignas(kWgmmaAlignment) T queries[kStages][kRows * kHeadDim];
    alignas(kWgmmaAlignment) T keys[kStages][kKeys * kHeadDim];
    alignas(kWgmmaAlignment) T values[kStages][kKeys * kHeadDim];
    PrefillTile tiles[kStages];  // those of `queries`
    // full: ready to be read; empty: all multiplying warps are done
    uint64_t tiles_full[kStages], queries_full[kStages], queries_empty[kStages];
    uint64_t keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
    uint64_t tail_full;
};
static_assert(sizeof(PrefillShared<__half, 128>) <= 227 * 1024, "must fit sm_90");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kGroupRows = HopperConfig::kGroupRows;
constexpr int kMultiplyingWarps = kGroups * kGroupThreads / 32;
constexpr int kCopyingWarp = kMultiplyingWarps;
constexpr int kFirstPreparingWarp = kCopyingWarp + 1, kPreparingWarps = kWarps - kFirstPreparingWarp;
constexpr int kLoaderRegisters = 72;       // of a thread; 128 * 72 + 256 * 216 = 64512 of 65536
constexpr int kMultiplierRegisters = 216;  // 64 scores, 64 outputs and 32 probabilities at D = 128

// Named barriers; 0 is __syncthreads's.
constexpr int kTurnBarrier = 1;   // + warpgroup: its turn to issue products
constexpr int kGroupBarrier = 3;  // + warpgroup: among itself

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Stage and parity of the idx-th use of a ring of kStages.
__device__ __forceinline__ int stage_of(int idx) { return idx % kStages; }
__device__ __forceinline__ int parity_of(int idx) { return idx / kStages & 1; }

template <typename T, int kHeadDim>
__device__ __forceinline__ void init_barriers(PrefillShared<T, kHeadDim>& shared) {
    for (int stage = 0; stage < kStages; ++stage) {
        for (uint64_t* full : {&shared.tiles_full[stage], &shared.keys_full[stage], &shared.values_full[stage]})
            mbarrier_init(full, 1);
        mbarrier_init(&shared.queries_full[stage], kPreparingWarps);
        for (uint64_t* empty : {&shared.queries_empty[stage], &shared.keys_empty[stage], &shared.values_empty[stage]})
            mbarrier_init(empty, kMultiplyingWarps);
    }
    mbarrier_init(&shared.tail_full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // to the copy engine
}

// Copies tile `idx` of keys or values. By one warp; a lane takes a box, a block's rows of one half. Boxes past the
// context repeat its last block, as the table is not read further.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tile(const HopperParams<T, kHeadDim>& params, const QueryRows& rows, KvPart part,
                                          int idx, T* destination, uint64_t* full) {
    constexpr int kHalves = kHeadDim / kHalf;
    const PagedKv<T, kHeadDim>& kv = params.attention.kv;
    const int lane = threadIdx.x % 32, half = lane % kHalves;
    const int box_row = lane / kHalves << kv.log2_block_size;
    const HalvedTile<T, kHeadDim, kKeys> stage{destination};
    if (lane == 0) mbarrier_arrive_expecting(full, kKeys * kHeadDim * sizeof(T));
    __syncwarp();
    if (box_row >= kKeys) return;
    const int32_t last = (rows.seq.context_len - 1) >> kv.log2_block_size << kv.log2_block_size;
    const int32_t position = min(idx * kKeys + box_row, last);
    const int64_t row = kv.row_idx(part, rows.seq.idx, rows.kv_head, position);
    copy_box(stage.half(half) + box_row * kHalf, &params.kv_rows, static_cast<int32_t>(row), half * kHalf, full);
}

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
__device__ __forceinline__ void copy_tiles(const HopperParams<T, kHeadDim>& params,
                                           PrefillShared<T, kHeadDim>& shared) {
    int step = 0, num_tails = 0;
    for (int k = 0;; ++k) {
        mbarrier_wait(&shared.tiles_full[stage_of(k)], parity_of(k));
        const PrefillTile tile = shared.tiles[stage_of(k)];
        if (tile.is_empty) return;
        const int num_tiles = tile.num_key_tiles<kRows, kKeys>();
        for (int idx = 0; idx <= num_tiles; ++idx, ++step) {
            if (idx < num_tiles) {
                const int stage = stage_of(step);
                mbarrier_wait(&shared.keys_empty[stage], parity_of(step) ^ 1);
                copy_tile(params, tile.rows, KvPart::kKey, idx, shared.keys[stage], &shared.keys_full[stage]);
            }
            if (idx == 0) continue;
            const int stage = stage_of(step - 1), unseen = idx * kKeys - tile.rows.seq.context_len;
            T* const values = shared.values[stage];
            uint64_t* const full = &shared.values_full[stage];
            mbarrier_wait(&shared.values_empty[stage], parity_of(step - 1) ^ 1);
            if (unseen <= 0) {
                copy_tile(params, tile.rows, KvPart::kValue, idx - 1, values, full);
            } else {
                copy_tile(params, tile.rows, KvPart::kValue, idx - 1, values, &shared.tail_full);
                mbarrier_wait(&shared.tail_full, num_tails++ & 1);
                zero_values_from<T, kHeadDim>(values, kKeys - unseen);
                if (threadIdx.x % 32 == 0) mbarrier_arrive(full);
            }
        }
        --step;  // the last values' turn had no keys
    }
}

// Norms and rotates the rows of a tile, shared out among `num_warps` warps. May run ahead of wait_for_predecessor(),
// as launch_append starts this kernel behind its own: hence loads past L1.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_queries(const AttentionParams<T, kHeadDim>& params, const PrefillTile& tile,
                                                T* queries, int warp, int num_warps) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int lane = threadIdx.x % kLanes, first = (warp * 32 + threadIdx.x % 32) / kLanes;
    const int rows = num_warps * 32 / kLanes, count = min(tile.rows.count() - tile.first_row, kRows);
    const HalvedTile<T, kHeadDim, kRows> destination{queries};
    const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
    int32_t position = first < count ? __ldcg(params.positions + tile.rows.token(tile.first_row + first)) : 0;
    for (int i = first; i < kRows; i += rows) {
        uint4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
        if (i < count) {
            const int32_t row = tile.first_row + i;
            HeadRow query = load_row_past_l1<kHeadDim>(params.qkv_row(tile.rows.token(row), tile.rows.head(row)), lane);
            const float* rotation = params.cos_sin_cache + int64_t{position} * kHeadDim;
            if (i + rows < count) position = __ldcg(params.positions + tile.rows.token(row + rows));
            norm_and_rotate<kHeadDim>(query, weight, rotation, params.eps, lane);
            low = pack_vector<T>(query.low), high = pack_vector<T>(query.high);
        }
        *reinterpret_cast<uint4*>(destination.chunk(i, lane)) = low;
        *reinterpret_cast<uint4*>(destination.chunk(i, lane + kLanes)) = high;
    }
    fence_async_proxy();
    __syncwarp();
}

// The preparing warps: the queries of all tiles but the first, one tile ahead. The first of the warps takes the tiles.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_tiles(const HopperParams<T, kHeadDim>& params,
                                              const PrefillSchedule<kRows>& schedule,
                                              PrefillShared<T, kHeadDim>& shared) {
    const int warp = threadIdx.x / 32 - kFirstPreparingWarp;
    const bool is_elected = threadIdx.x % 32 == 0;
    for (int k = 0;; ++k) {
        const int stage = stage_of(k);
        mbarrier_wait(&shared.queries_empty[stage], parity_of(k) ^ 1);
        if (warp == 0) {
            if (k > 0) {
                int32_t idx = is_elected ? static_cast<int32_t>(gridDim.x) + atomicAdd(params.next_tile, 1) : 0;
                const PrefillTile tile = schedule.find(__shfl_sync(~0u, idx, 0));
                if (is_elected) shared.tiles[stage] = tile;
            }
            if (is_elected) mbarrier_arrive(&shared.tiles_full[stage]);
        }
        mbarrier_wait(&shared.tiles_full[stage], parity_of(k));
        const PrefillTile tile = shared.tiles[stage];
        if (k > 0 && !tile.is_empty)
            prepare_queries(params.attention, tile, shared.queries[stage], warp, kPreparingWarps);
        if (is_elected) mbarrier_arrive(&shared.queries_full[stage]);
        if (tile.is_empty) return;
    }
}

// Through the warp's own rows of the query tile, so that rows leave in 16-byte pieces.
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_output(const GroupAttention<T, kHeadDim>& result,
                                             const AttentionParams<T, kHeadDim>& params, const PrefillTile& tile,
                                             const HalvedTile<T, kHeadDim, kRows>& staging, int group) {
    constexpr int kLanes = kHeadDim / kVector;
    const int lane = threadIdx.x % 32, first_row = group * kGroupRows + threadIdx.x / 32 % 4 * 16;
    barrier_sync(kGroupBarrier + group, kGroupThreads);  // the queries have been read
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *reinterpret_cast<uint32_t*>(staging.chunk(first_row + 8 * half + lane / 4, n) + lane % 4 * 2) =
                pack2<T>(result.out[n][2 * half], result.out[n][2 * half + 1]);
    __syncwarp();
    for (int i = lane / kLanes; i < 16; i += 32 / kLanes) {
        const int32_t row = tile.first_row + first_row + i;
        if (row >= tile.rows.count()) break;
        T* destination = params.out_row(tile.rows.token(row), tile.rows.head(row)) + lane % kLanes * kVector;
        *reinterpret_cast<uint4*>(destination) =
            *reinterpret_cast<const uint4*>(staging.chunk(first_row + i, lane % kLanes));
    }
    __syncwarp();
}

// A warpgroup that multiplies.
template <typename T, int kHeadDim>
struct Multiplier {
    using Group = GroupAttention<T, kHeadDim>;

    const AttentionParams<T, kHeadDim>& params;
    PrefillShared<T, kHeadDim>& shared;
    const int group;
    Group result;
    int tile_idx = 0, num_key_tiles = 0;
    int32_t positions[2], seen_by_all;

    // Waits for query tile tile_idx; false if there is none.
    __device__ __forceinline__ bool take_tile() {
        const int stage = stage_of(tile_idx);
        mbarrier_wait(&shared.queries_full[stage], parity_of(tile_idx));
        const PrefillTile& tile = shared.tiles[stage];
        if (tile.is_empty) return false;
        const int32_t first_row = tile.first_row + group * kGroupRows;
        const int32_t lane_row = first_row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
        positions[0] = tile.rows.position(lane_row), positions[1] = tile.rows.position(lane_row + 8);
        seen_by_all = tile.rows.position(first_row) + 1;
        num_key_tiles = tile.num_key_tiles<kRows, kKeys>();
        return true;
    }

    // Stores the result of query tile `idx`, whose queries are then free.
    __device__ __forceinline__ void finish_tile(int idx) {
        const int stage = stage_of(idx);
        result.divide_by_sums();
        store_output(result, params, shared.tiles[stage], HalvedTile<T, kHeadDim, kRows>{shared.queries[stage]}, group);
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.queries_empty[stage]);
        result = Group{};
    }

    __device__ __forceinline__ const T* queries() const {
        return shared.queries[stage_of(tile_idx)] + group * kGroupRows * kHalf;
    }

    // The wait for values to be added stands behind the end of the loop, where the compiler cannot move it up to before
    // the softmax: else it does, and the two do not overlap.
    __device__ __forceinline__ void run() {
        constexpr int kTurnThreads = kGroups * kGroupThreads;
        const bool is_elected = threadIdx.x % 32 == 0;
        typename Group::Scores scores;
        typename Group::Probabilities probabilities;
        float rescale[2];
        if (!take_tile()) return;
        if (group == 1) barrier_arrive(kTurnBarrier, kTurnThreads);  // group 0 begins

        mbarrier_wait(&shared.keys_full[0], 0);
        Group::start_scores(scores, queries(), shared.keys[0]);
        wgmma_wait<0>();
        pin(scores);
        if (is_elected) mbarrier_arrive(&shared.keys_empty[0]);
        if (kKeys > seen_by_all) Group::mask(scores, positions, 0);
        result.softmax(scores, rescale, params.scale_log2);

        int step = 0, idx = 0;  // key tiles in all, and of this query tile
        while (true) {
            wgmma_wait<0>();
            pin(result.out);
            if (is_elected && step > 0) mbarrier_arrive(&shared.values_empty[stage_of(step - 1)]);
            Group::pack(probabilities, scores);
            result.scale_out(rescale);
            if (++idx == num_key_tiles) {
                idx = 0;
                ++tile_idx;
                if (!take_tile()) break;
            }
            ++step;

            mbarrier_wait(&shared.keys_full[stage_of(step)], parity_of(step));
            barrier_sync(kTurnBarrier + group, kTurnThreads);
            Group::start_scores(scores, queries(), shared.keys[stage_of(step)]);
            mbarrier_wait(&shared.values_full[stage_of(step - 1)], parity_of(step - 1));
            result.start_values(probabilities, shared.values[stage_of(step - 1)]);
            barrier_arrive(kTurnBarrier + (group ^ 1), kTurnThreads);
            wgmma_wait<1>();
            pin(scores);
            if (is_elected) mbarrier_arrive(&shared.keys_empty[stage_of(step)]);
            if (idx == 0) {
                wgmma_wait<0>();
                pin(result.out);
                finish_tile(tile_idx - 1);
            }
            if ((idx + 1) * kKeys > seen_by_all) Group::mask(scores, positions, idx * kKeys);
            result.softmax(scores, rescale, params.scale_log2);
            pin(scores);
        }
        mbarrier_wait(&shared.values_full[stage_of(step)], parity_of(step));
        result.start_values(probabilities, shared.values[stage_of(step)]);
        wgmma_wait<0>();
        pin(result.out);
        finish_tile(tile_idx - 1);
    }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ HopperParams<T, kHeadDim> params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kWgmmaAlignment) unsigned char dynamic_shared[];
    auto& shared = *reinterpret_cast<PrefillShared<T, kHeadDim>*>(dynamic_shared);
    const PrefillSchedule<kRows> schedule(params.attention);
    const int warp = threadIdx.x / 32;
    allow_successor();
    if (threadIdx.x == 0) init_barriers(shared);
    const PrefillTile first = schedule.find(blockIdx.x);
    if (threadIdx.x == 0) shared.tiles[0] = first;
    if (!first.is_empty) prepare_queries(params.attention, first, shared.queries[0], warp, kWarps);
    wait_for_predecessor();
    __syncthreads();
    if (warp >= kMultiplyingWarps) {
        shrink_registers<kLoaderRegisters>();
        if (warp == kCopyingWarp)
            copy_tiles(params, shared);
        else
            prepare_tiles(params, schedule, shared);
    } else {
        grow_registers<kMultiplierRegisters>();
        Multiplier<T, kHeadDim>{params.attention, shared, warp / 4}.run();
    }
#else
    __trap();  // built without sm_90a: chosen for compute capability 9.0 only
#endif
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_prefill_hopper(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  const Device& device, int32_t* next_tile, cudaStream_t stream) {
    HopperParams<T, kHeadDim> hopper{{}, params, next_tile};
    const PagedKv<T, kHeadDim>& kv = params.kv;
    const cudaError_t error =
        describe_matrix(&hopper.kv_rows, kv.data, kv.num_rows(), kHeadDim, 1 << kv.log2_block_size);
    if (error != cudaSuccess) return error;
    const dim3 grid(std::min(plan.prefill_tiles * params.num_kv_heads, device.num_multiprocessors));
    constexpr size_t kShared = sizeof(PrefillShared<T, kHeadDim>);
    return launch_kernel(prefill_kernel<T, kHeadDim>, {grid, kThreads, kShared, stream, true}, hopper);
}

template cudaError_t launch_prefill_hopper(const AttentionParams<__nv_bfloat16, 64>&, const AttentionPlan&,
                                           const Device&, int32_t*, cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__nv_bfloat16, 128>&, const AttentionPlan&,
                                           const Device&, int32_t*, cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__half, 64>&, const AttentionPlan&, const Device&,
                                           int32_t*, cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__half, 128>&, const AttentionPlan&, const Device&,
                                           int32_t*, cudaStream_t);

}  // namespace qwen3moe
