// Attention of sequences with many new tokens, for sm_90a: a persistent kernel whose CTAs, one on a multiprocessor,
// take tiles of 128 query rows of one sequence and key/value head (FlashAttention-3's shape, arXiv:2407.08608).
//
// Two warpgroups multiply, 64 rows each, passing over the keys that the rows may see in tiles of 128. While one's
// tensor cores multiply, the other computes its softmax: they take turns at issuing. Within a warpgroup the scores of a
// tile are on their way while the values of the tile before are added, also where that one is the last of another query
// tile. A third warpgroup brings the tiles.
#include <algorithm>

#include "attention_launch.cuh"
#include "attention_prefill_loaders.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace prefill {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kLoaderRegisters = 88;       // of a thread; 128 * 88 + 256 * 208 = 64512 of 65536
constexpr int kMultiplierRegisters = 208;  // 64 scores, 64 outputs and 32 probabilities at D = 128

// Through the warp's own rows of the query tile, so that rows leave in 16-byte pieces.
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_output(const GroupAttention<T, kHeadDim>& result,
                                             const AttentionParams<T, kHeadDim>& params, const QueryTile& tile,
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
    Shared<T, kHeadDim>& shared;
    const int group;
    Group result;
    typename Group::Scores scores;
    float rescale[2];
    Ring<kQueryStages> tiles;  // whose scores are computed
    Ring<kKeyStages> keys;
    Ring<kValueStages> values;
    int num_key_tiles, key_tile = 0;  // of the query tile
    int32_t positions[2], seen_by_all;

    // Waits for query tile tiles.stage; false if there is none.
    __device__ __forceinline__ bool take_tile() {
        mbarrier_wait(&shared.queries_full[tiles.stage], tiles.parity);
        const QueryTile& tile = shared.tiles[tiles.stage];
        num_key_tiles = tile.num_key_tiles;
        if (num_key_tiles == 0) return false;
        const int32_t first_row = tile.first_row + group * kGroupRows;
        const int32_t lane_row = first_row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
        positions[0] = tile.rows.position(lane_row), positions[1] = tile.rows.position(lane_row + 8);
        seen_by_all = tile.rows.position(first_row) + 1;
        return true;
    }

    __device__ __forceinline__ void start_scores() {
        Group::start_scores(scores, shared.queries[tiles.stage] + group * kGroupRows * kHalf, shared.keys[keys.stage]);
    }

    template <int kPending>
    __device__ __forceinline__ void wait_for_scores() {
        wgmma_wait<kPending>();
        pin(scores);
        release(&shared.keys_empty[keys.stage]);
        keys.advance();
    }

    __device__ __forceinline__ void softmax() {
        if ((key_tile + 1) * kKeys > seen_by_all) Group::mask(scores, positions, key_tile * kKeys);
        result.softmax(scores, rescale, params.scale_log2);
        pin(scores);
    }

    // Waits for the last values of a query tile and stores its result; its queries are then free.
    __device__ __forceinline__ void finish_tile(int stage) {
        wgmma_wait<0>();
        pin(result.out);
        result.divide_by_sums();
        const HalvedTile<T, kHeadDim, kRows> staging{shared.queries[stage]};
        store_output(result, params, shared.tiles[stage], staging, group);
        release(&shared.queries_empty[stage]);
        result = Group{};
    }

    // The wait for values to be added stands behind the end of the loop, where the compiler cannot move it up to before
    // the softmax: else it does, and the two do not overlap.
    __device__ __forceinline__ void run() {
        typename Group::Probabilities probabilities;
        prepare_first_queries(params, shared);
        barrier_arrive(kFirstBarrier, kFirstThreads);
        wait_for_predecessor();
        cluster_wait_parted();
        if (!take_tile()) return;
        if (group == 1) barrier_arrive(kTurnBarrier, kTurnThreads);  // group 0 begins
        mbarrier_wait(&shared.keys_full[0], 0);
        start_scores();
        wait_for_scores<0>();
        softmax();
        int finished = tiles.stage;
        for (bool is_adding = false;; is_adding = true) {
            wgmma_wait<0>();
            pin(result.out);
            if (is_adding) release(&shared.values_empty[values.stage]), values.advance();
            Group::pack(probabilities, scores);
            result.scale_out(rescale);
            if (++key_tile == num_key_tiles) {
                key_tile = 0;
                finished = tiles.stage;
                tiles.advance();
                if (!take_tile()) break;
            }
            mbarrier_wait(&shared.keys_full[keys.stage], keys.parity);
            barrier_sync(kTurnBarrier + group, kTurnThreads);
            start_scores();
            mbarrier_wait(&shared.values_full[values.stage], values.parity);
            result.start_values(probabilities, shared.values[values.stage]);
            barrier_arrive(kTurnBarrier + (group ^ 1), kTurnThreads);
            wait_for_scores<1>();
            if (key_tile == 0) finish_tile(finished);
            softmax();
        }
        mbarrier_wait(&shared.values_full[values.stage], values.parity);
        result.start_values(probabilities, shared.values[values.stage]);
        finish_tile(finished);
        release(&shared.values_empty[values.stage]);
    }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) prefill_kernel(const __grid_constant__ Params<T, kHeadDim> params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kWgmmaAlignment) unsigned char dynamic_shared[];
    auto& shared = *reinterpret_cast<Shared<T, kHeadDim>*>(dynamic_shared);
    const int warp = threadIdx.x / 32;
    allow_successor();
    if (threadIdx.x == 0) {
        prefetch_map(&params.kv_rows);
        init_barriers(shared);
    }
    __syncthreads();
    cluster_arrive_relaxed();
    if (warp >= kMultiplyingWarps) {
        shrink_registers<kLoaderRegisters>();
        if (warp == kCopyingWarp)
            TileCopier<T, kHeadDim>{{params, cluster_rank()}, shared}.run();
        else
            TilePreparer<T, kHeadDim>{params, shared}.run();
    } else {
        grow_registers<kMultiplierRegisters>();
        Multiplier<T, kHeadDim>{params.attention, shared, warp / 4}.run();
    }
#else
    __trap();  // built without sm_90a: chosen for compute capability 9.0 only
#endif
}

}  // namespace prefill

template <typename T, int kHeadDim>
cudaError_t launch_prefill_hopper(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  const Device& device, int32_t* next_tile, cudaStream_t stream) {
    prefill::Params<T, kHeadDim> hopper{{}, params, next_tile};
    const PagedKv<T, kHeadDim>& kv = params.kv;
    const cudaError_t error =
        describe_matrix(&hopper.kv_rows, kv.data, kv.num_rows(), kHeadDim, 1 << kv.log2_block_size);
    if (error != cudaSuccess) return error;
    constexpr int kRanks = prefill::kRanks;
    const int clusters = std::min(plan.prefill_tiles * params.num_kv_heads, device.num_multiprocessors / kRanks);
    const Launch launch{
        dim3(clusters * kRanks), prefill::kThreads, sizeof(prefill::Shared<T, kHeadDim>), stream, true, kRanks};
    return launch_kernel(prefill::prefill_kernel<T, kHeadDim>, launch, hopper);
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
