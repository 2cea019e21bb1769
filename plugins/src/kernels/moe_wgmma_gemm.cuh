// Grouped matrix products with wgmma, for Hopper and many tokens: persistent clusters of two blocks, each of a
// warpgroup that loads and two that multiply 128 weight rows each by up to 128 tokens.
//
// What L2 delivers, about 7 TB/s, decides. The blocks of a cluster take the same 256 weight rows and half of a tile's
// tokens each; the copy engine brings a half of the weights for each and gives it to both. That is 128 operations per
// byte, where a block of 128 tokens on its own does 85 and stays below 600 TFLOP/s. Weights are the rows of the product
// because tokens then come in groups of 8, where rows come in groups of 64: of the work 2 % is padding at 8192 tokens
// and 5 % at 2048, not 6 and 25 %.
#pragma once

#include "launch.cuh"
#include "moe_multiplier.cuh"
#include "moe_token_rows.cuh"
#include "moe_weight_boxes.cuh"

namespace qwen3moe::moe {

constexpr int kLoaderRegisters = 72;       // of a thread; 128 * 72 + 256 * 216 = 64512 of 65536
constexpr int kMultiplierRegisters = 216;  // 128 of them accumulators

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// By one thread: a slice of the piece's weights, of which this block fetches a half, for both.
template <Product kProduct, typename Shared>
__device__ __forceinline__ void load_weights(const CUtensorMap* weights, Shared& shared, int stage, const Piece& piece,
                                             int slice, int rank) {
    mbarrier_arrive_expecting(&shared.full[stage], kWeightBytes);
    const int group = piece.first_col / 8 + rank * (output_cols<kProduct>(kBoxRows) / 8);
    copy_box((1 << kCluster) - 1, shared.stages[stage] + rank * kBoxBytes, weights,
             {slice * kSlice, 0, 0, group, piece.slot}, &shared.full[stage]);
}

// down's first weights are on their way before gate_up has ended.
template <typename T, Product kProduct, int kTokens>
__device__ __forceinline__ void load_pieces(const Params<T>& p, const CUtensorMap* weights,
                                            const Pieces<kProduct>& pieces, WgmmaShared<kTokens>& shared) {
    constexpr int kStages = WgmmaShared<kTokens>::kStages;
    const int thread = threadIdx.x % kGroupThreads;
    const bool is_elected = thread == 0;
    Piece piece = pieces[pieces.first()];
    const int ahead = piece.exists ? min(kStages, pieces.num_slices) : 0;
    for (int slice = 0; is_elected && slice < ahead; ++slice)
        load_weights<kProduct>(weights, shared, slice, piece, slice, pieces.rank);
    if constexpr (kProduct == Product::kDown) {
        wait_for_predecessor();
        allow_successor();
    }
    TokenRows<T, kProduct, kGroupThreads, kTokens> tokens(p, thread);
    Ring<kStages> ring;
    Queue queue{shared.queued, shared.queue};
    for (int skip = ahead; piece.exists; piece = pieces[queue.next()]) {
        int next = 0;
        if (is_elected && pieces.rank == 0)
            next = atomicAdd(&p.counters[static_cast<int>(kProduct)], 1) + gridDim.x / kCluster;
        tokens.locate(p, piece.first_row, piece.num_rows);
        for (int slice = 0; slice < pieces.num_slices; ++slice, ring.advance()) {
            mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            if (is_elected && --skip < 0)
                load_weights<kProduct>(weights, shared, ring.stage, piece, slice, pieces.rank);
            tokens.load(shared.stages[ring.stage] + kWeightBytes, slice);
            mbarrier_arrive_after_copies(&shared.full[ring.stage]);
            if (is_elected && slice == min(1, pieces.num_slices - 1)) queue.put(next, pieces.rank);
        }
    }
    cp_async_commit();
    cp_async_wait<0>();  // no thread leaves with copies on their way
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Grid: one block per multiprocessor, in clusters.
template <typename T, Product kProduct, int kTokens>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_gemm_kernel(Params<T> p, const __grid_constant__ CUtensorMap weights) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kWgmmaAlignment) unsigned char dynamic_shared[];
    auto& shared = *reinterpret_cast<WgmmaShared<kTokens>*>(dynamic_shared);
    if (threadIdx.x == 0) {
        for (uint64_t& barrier : shared.full) mbarrier_init(&barrier, kGroupThreads + 1);
        for (uint64_t& barrier : shared.empty) mbarrier_init(&barrier, kCluster * kNumMultipliers * kGroupThreads / 32);
        for (uint64_t& barrier : shared.queued) mbarrier_init(&barrier, 1);
        fence_barrier_init();
    }
    // The plan is gate_up's predecessor, but down's was preceded by it.
    if constexpr (kProduct == Product::kGateUp) {
        wait_for_predecessor();
        allow_successor();
    }
    const Pieces<kProduct> pieces(p, shared.live_tiles, shared.warp_totals);
    cluster_arrive();  // the barriers and the list are ready
    cluster_wait();

    const int group = threadIdx.x / kGroupThreads;
    if (group == kNumMultipliers) {
        shrink_registers<kLoaderRegisters>();
        load_pieces(p, &weights, pieces, shared);
    } else {
        grow_registers<kMultiplierRegisters>();
        if constexpr (kProduct == Product::kDown) wait_for_predecessor();
        Multiplier<T, kProduct, kTokens>(p, shared, group).run(pieces);
    }
    cluster_arrive();  // nobody leaves while the other may still write to its memory
    cluster_wait();
#else
    __trap();  // built without sm_90a: chosen for compute capability 9.0 only
#endif
}

}  // namespace qwen3moe::moe
