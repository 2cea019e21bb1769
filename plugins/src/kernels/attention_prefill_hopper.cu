// Attention of sequences with many new tokens, for sm_90a: the prefill kernel with a warp that copies and two
// warpgroups that multiply (FlashAttention-3's shape, arXiv:2407.08608).
//
// A CTA takes 128 query rows of one sequence and key/value head, 64 a warpgroup, and passes over the keys its rows may
// see in tiles of 128. While one warpgroup's tensor cores multiply, the other computes its softmax: they take turns at
// issuing. Within a warpgroup the scores of a tile are on their way while the values of the tile before are added.
#include "attention_group.cuh"
#include "attention_launch.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace {

constexpr int kGroups = HopperConfig::kGroups;
constexpr int kGroupThreads = 128;
constexpr int kKeys = HopperConfig::kKeys;
constexpr int kRows = HopperConfig::kRows;
constexpr int kStages = 2;  // of keys and of values: 4 * 32 KB and 32 KB of queries at D = 128, one CTA on an SM
constexpr int kThreads = (kGroups + 1) * kGroupThreads;

template <typename T, int kHeadDim>
struct HopperParams {
    CUtensorMap kv_rows;  // the cache as rows [D]
    AttentionParams<T, kHeadDim> attention;
};

template <typename T, int kHeadDim>
struct PrefillShared {
    alignas(kWgmmaAlignment) T queries[kRows * kHeadDim];
    alignas(kWgmmaAlignment) T keys[kStages][kKeys * kHeadDim];
    alignas(kWgmmaAlignment) T values[kStages][kKeys * kHeadDim];
    uint64_t keys_full[kStages], keys_empty[kStages];  // full: the copies have landed; empty: all warps are done
    uint64_t values_full[kStages], values_empty[kStages];
};
static_assert(sizeof(PrefillShared<__half, 128>) <= 227 * 1024, "must fit sm_90");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kGroupRows = HopperConfig::kGroupRows;
constexpr int kCopierRegisters = 24;       // of a thread; 128 * 24 + 256 * 240 = 64512 of 65536
constexpr int kMultiplierRegisters = 240;  // 64 scores, 64 outputs and 32 probabilities at D = 128

// Named barriers; 0 is __syncthreads's.
constexpr int kTurnBarrier = 1;   // + warpgroup: its turn to issue products
constexpr int kGroupBarrier = 3;  // + warpgroup: among itself
constexpr int kMultipliersBarrier = 5;

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Copies tile `idx` of keys or values once its stage is free. By one warp; a lane takes a box, a block's rows of one
// half. Boxes past the context repeat its last block, as the table is not read further.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tile(const HopperParams<T, kHeadDim>& params, const PrefillTile& tile, KvPart part,
                                          int idx, int32_t end, T* destination, uint64_t* full, uint64_t* empty) {
    constexpr int kHalves = kHeadDim / kHalf;
    const PagedKv<T, kHeadDim>& kv = params.attention.kv;
    const int lane = threadIdx.x % 32, half = lane % kHalves;
    const int box_row = lane / kHalves << kv.log2_block_size;
    const HalvedTile<T, kHeadDim, kKeys> stage{destination};
    mbarrier_wait(empty, (idx / kStages & 1) ^ 1);
    if (lane == 0) mbarrier_arrive_expecting(full, kKeys * kHeadDim * sizeof(T));
    __syncwarp();
    if (box_row >= kKeys) return;
    const int32_t last = (end - 1) >> kv.log2_block_size << kv.log2_block_size;
    const int32_t position = min(idx * kKeys + box_row, last);
    const int64_t row = kv.row_idx(part, tile.rows.seq.idx, tile.rows.kv_head, position);
    copy_box(stage.half(half) + box_row * kHalf, &params.kv_rows, static_cast<int32_t>(row), half * kHalf, full);
}

// In the order in which they are multiplied: keys run one tile ahead of values.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tiles(const HopperParams<T, kHeadDim>& params, const PrefillTile& tile,
                                           PrefillShared<T, kHeadDim>& shared, int32_t end, int num_tiles) {
    for (int idx = 0; idx <= num_tiles; ++idx) {
        const int keys = idx % kStages, values = (idx + kStages - 1) % kStages;
        if (idx < num_tiles)
            copy_tile(params, tile, KvPart::kKey, idx, end, shared.keys[keys], &shared.keys_full[keys],
                      &shared.keys_empty[keys]);
        if (idx > 0)
            copy_tile(params, tile, KvPart::kValue, idx - 1, end, shared.values[values], &shared.values_full[values],
                      &shared.values_empty[values]);
    }
}

// The warpgroup's rows of the query tile.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_queries(const AttentionParams<T, kHeadDim>& params, const PrefillTile& tile,
                                             const HalvedTile<T, kHeadDim, kRows>& queries, int group) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int thread = threadIdx.x % kGroupThreads, lane = thread % kLanes;
    const int count = tile.rows.count() - tile.first_row;
    const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
#pragma unroll 2
    for (int i = thread / kLanes; i < kGroupRows; i += kGroupThreads / kLanes) {
        const int row = group * kGroupRows + i;
        if (row < count) {
            load_query(queries, row, params, tile.rows, tile.first_row + row, weight, lane);
        } else {
            *reinterpret_cast<uint4*>(queries.chunk(row, lane)) = uint4{0, 0, 0, 0};
            *reinterpret_cast<uint4*>(queries.chunk(row, lane + kLanes)) = uint4{0, 0, 0, 0};
        }
    }
    fence_async_proxy();
    barrier_sync(kGroupBarrier + group, kGroupThreads);
}

// Values past the context may be NaN, and 0 * NaN would reach the output.
template <typename T, int kHeadDim>
__device__ __forceinline__ void zero_values_from(T* values, int first_row) {
    constexpr int kChunks = kHeadDim / kVector;
    const HalvedTile<T, kHeadDim, kKeys> tile{values};
    for (int i = first_row * kChunks + threadIdx.x; i < kKeys * kChunks; i += kGroups * kGroupThreads)
        *reinterpret_cast<uint4*>(tile.chunk(i / kChunks, i % kChunks)) = uint4{0, 0, 0, 0};
    fence_async_proxy();
    barrier_sync(kMultipliersBarrier, kGroups * kGroupThreads);
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
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void multiply_tiles(const AttentionParams<T, kHeadDim>& params, const PrefillTile& tile,
                                               PrefillShared<T, kHeadDim>& shared, int32_t end, int num_tiles,
                                               int group) {
    using Group = GroupAttention<T, kHeadDim>;
    constexpr int kTurnThreads = kGroups * kGroupThreads;
    const HalvedTile<T, kHeadDim, kRows> queries{shared.queries};
    const T* const group_queries = shared.queries + group * kGroupRows * kHalf;
    const bool is_elected = threadIdx.x % 32 == 0;
    const int32_t lane_row = tile.first_row + group * kGroupRows + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const int32_t positions[2] = {tile.rows.position(lane_row), tile.rows.position(lane_row + 8)};
    const int32_t seen_by_all = tile.rows.position(tile.first_row) + 1;

    load_queries(params, tile, queries, group);
    Group result;
    typename Group::Scores scores;
    typename Group::Probabilities probabilities;
    float rescale[2];
    if (group == 1) barrier_arrive(kTurnBarrier, kTurnThreads);  // group 0 begins

    mbarrier_wait(&shared.keys_full[0], 0);
    Group::start_scores(scores, group_queries, shared.keys[0]);
    wgmma_wait<0>();
    pin(scores);
    if (is_elected) mbarrier_arrive(&shared.keys_empty[0]);
    if (kKeys > seen_by_all) Group::mask(scores, positions, 0);
    result.softmax(scores, rescale, params.scale_log2);
    Group::pack(probabilities, scores);

    for (int idx = 1; idx < num_tiles; ++idx) {
        const int stage = idx % kStages, last_stage = (idx - 1) % kStages;
        mbarrier_wait(&shared.keys_full[stage], idx / kStages & 1);
        barrier_sync(kTurnBarrier + group, kTurnThreads);
        Group::start_scores(scores, group_queries, shared.keys[stage]);
        mbarrier_wait(&shared.values_full[last_stage], (idx - 1) / kStages & 1);
        result.start_values(probabilities, shared.values[last_stage]);
        barrier_arrive(kTurnBarrier + (group ^ 1), kTurnThreads);
        wgmma_wait<1>();
        pin(scores);
        if (is_elected) mbarrier_arrive(&shared.keys_empty[stage]);
        if ((idx + 1) * kKeys > seen_by_all) Group::mask(scores, positions, idx * kKeys);
        result.softmax(scores, rescale, params.scale_log2);
        pin(scores);  // exponentials stay ahead of the wait
        wgmma_wait<0>();
        pin(result.out);
        if (is_elected) mbarrier_arrive(&shared.values_empty[last_stage]);
        Group::pack(probabilities, scores);
        result.scale_out(rescale);
    }

    const int stage = (num_tiles - 1) % kStages;
    mbarrier_wait(&shared.values_full[stage], (num_tiles - 1) / kStages & 1);
    if (end % kKeys != 0) zero_values_from<T, kHeadDim>(shared.values[stage], end % kKeys);
    result.start_values(probabilities, shared.values[stage]);
    wgmma_wait<0>();
    pin(result.out);
    result.divide_by_sums();
    store_output(result, params, tile, queries, group);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ HopperParams<T, kHeadDim> params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kWgmmaAlignment) unsigned char dynamic_shared[];
    auto& shared = *reinterpret_cast<PrefillShared<T, kHeadDim>*>(dynamic_shared);
    const PrefillTile tile = PrefillTile::of_block<kRows>(params.attention);
    wait_for_predecessor();
    if (tile.is_empty) return;
    const int32_t end = tile.end<kRows>();
    const int num_tiles = (end + kKeys - 1) / kKeys;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            for (uint64_t* full : {&shared.keys_full[stage], &shared.values_full[stage]}) mbarrier_init(full, 1);
            for (uint64_t* empty : {&shared.keys_empty[stage], &shared.values_empty[stage]})
                mbarrier_init(empty, kGroups * kGroupThreads / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // to the copy engine
    }
    __syncthreads();
    const int group = threadIdx.x / kGroupThreads;
    if (group == kGroups) {
        shrink_registers<kCopierRegisters>();
        if (threadIdx.x % kGroupThreads < 32) copy_tiles(params, tile, shared, end, num_tiles);
    } else {
        grow_registers<kMultiplierRegisters>();
        multiply_tiles(params.attention, tile, shared, end, num_tiles, group);
    }
#else
    __trap();  // built without sm_90a: chosen for compute capability 9.0 only
#endif
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_prefill_hopper(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  cudaStream_t stream) {
    HopperParams<T, kHeadDim> hopper{{}, params};
    const PagedKv<T, kHeadDim>& kv = params.kv;
    const cudaError_t error =
        describe_matrix(&hopper.kv_rows, kv.data, kv.num_rows(), kHeadDim, 1 << kv.log2_block_size);
    if (error != cudaSuccess) return error;
    const dim3 grid(plan.prefill_tiles * params.num_kv_heads);
    constexpr size_t kShared = sizeof(PrefillShared<T, kHeadDim>);
    return launch_kernel(prefill_kernel<T, kHeadDim>, {grid, kThreads, kShared, stream, true}, hopper);
}

template cudaError_t launch_prefill_hopper(const AttentionParams<__nv_bfloat16, 64>&, const AttentionPlan&,
                                           cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__nv_bfloat16, 128>&, const AttentionPlan&,
                                           cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__half, 64>&, const AttentionPlan&, cudaStream_t);
template cudaError_t launch_prefill_hopper(const AttentionParams<__half, 128>&, const AttentionPlan&, cudaStream_t);

}  // namespace qwen3moe
