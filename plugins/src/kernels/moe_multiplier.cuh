// A warpgroup of the wgmma path: multiplies 128 weight rows by a block's tokens, as two blocks of 64 rows.
#pragma once

#include "moe_pieces.cuh"
#include "moe_token_store.cuh"
#include "wgmma_tokens.cuh"

namespace qwen3moe::moe {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename T, Product kProduct, int kTokens>
class Multiplier {
   public:
    __device__ Multiplier(const Params<T>& p, WgmmaShared<kTokens>& shared, int group)
        : p_(p), shared_(shared), group_(group) {}

    __device__ __forceinline__ void run(const Pieces<kProduct>& pieces) {
        Queue queue{shared_.queued, shared_.queue};
        const int num_slices = pieces.num_slices;
        for (Piece piece = pieces[pieces.first()], next; piece.exists; piece = next) {
            const Store store{piece.first_row, piece.num_rows, piece.first_col + group_ * 2 * Store::kFeatures};
            const int num_groups = (piece.num_rows + 7) / 8;
            if (num_groups == 0) {
                skip(num_slices);
                next = pieces[queue.next()];
            } else if constexpr (kProduct == Product::kDown) {
                for_groups(num_groups, [&](auto groups) { multiply_and_store(groups, num_slices, store); });
                next = pieces[queue.next()];
            } else {
                for_groups(num_groups, [&](auto groups) { multiply_both(groups, num_slices); });
                next = pieces[queue.next()];  // on its way while results are stored
                const int own_row = store.find_row(p_);
                store.store(p_, first_, shared_.staging[group_], group_, 0, own_row);
                store.store(p_, second_, shared_.staging[group_], group_, 1, own_row);
            }
        }
    }

   private:
    using Store = TokenStore<T, kProduct, kTokens>;
    using Accumulators = typename Store::Accumulators;
    template <int kCount>
    struct Groups {};

    // Calls work(Groups<n>()) for n = num_groups.
    template <int kGroups = 1, typename Work>
    __device__ __forceinline__ static void for_groups(int num_groups, Work work) {
        if constexpr (kGroups < kTokens / 8) {
            if (num_groups > kGroups) return for_groups<kGroups + 1>(num_groups, work);
        }
        work(Groups<kGroups>());
    }

    // acc = or += 64 weight rows x tokens over the slice in `stage`.
    template <int kGroups>
    __device__ __forceinline__ void multiply(Accumulators& acc, int stage, int block, bool accumulate) const {
        const unsigned char* slice = shared_.stages[stage];
        const uint64_t a = wgmma_descriptor(slice + (group_ * 2 + block) * 64 * kRowBytes);
        const uint64_t b = wgmma_descriptor(slice + kWeightBytes);
#pragma unroll
        for (int k = 0; k < kSlice / 16; ++k)  // 32 bytes, in 16ths
            wgmma_groups<T, kGroups>(acc, a + k * 2, b + k * 2, accumulate || k > 0);
    }

    __device__ __forceinline__ void wait_full() {
        mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
        fence_async_proxy();
        ++num_held_;
    }

    template <int kGroups>
    __device__ __forceinline__ void start(Accumulators& acc, int stage, int block, bool accumulate) const {
        wgmma_fence();
        multiply<kGroups>(acc, stage, block, accumulate);
        wgmma_commit();
    }

    // Both blocks, slice by slice. A stage is given back when the next slice's product has been started behind it, so
    // that the tensor cores never wait for a barrier.
    template <int kGroups>
    __device__ __forceinline__ void multiply_both(Groups<kGroups>, int num_slices) {
        for (int slice = 0; slice < num_slices; ++slice, ring_.advance()) {
            wait_full();
            wgmma_fence();
            multiply<kGroups>(first_, ring_.stage, 0, slice > 0);
            multiply<kGroups>(second_, ring_.stage, 1, slice > 0);
            wgmma_commit();
            wgmma_wait<1>();
            give_back(1);
        }
        wgmma_wait<0>();
        pin(first_);
        pin(second_);
        give_back(0);
    }

    // The first block a slice ahead of the second, so that its results leave while the second's last slice is
    // multiplied: 4 % of the down product at 8192 tokens. In gate_up, ptxas would keep no product in flight then
    // (C7511).
    template <int kGroups>
    __device__ __forceinline__ void multiply_and_store(Groups<kGroups>, int num_slices, const Store& store) {
        wait_full();
        start<kGroups>(first_, ring_.stage, 0, false);
        for (int slice = 1; slice < num_slices; ++slice) {
            start<kGroups>(second_, ring_.stage, 1, slice > 1);
            ring_.advance();
            wait_full();
            start<kGroups>(first_, ring_.stage, 0, true);
            wgmma_wait<1>();
            give_back(1);
        }
        const int own_row = store.find_row(p_);
        start<kGroups>(second_, ring_.stage, 1, num_slices > 1);
        ring_.advance();
        wgmma_wait<1>();
        pin(first_);
        give_back(1);
        store.store(p_, first_, shared_.staging[group_], group_, 0, own_row);
        wgmma_wait<0>();
        pin(second_);
        give_back(0);
        store.store(p_, second_, shared_.staging[group_], group_, 1, own_row);
    }

    // For a block without tokens in the tile.
    __device__ __forceinline__ void skip(int num_slices) {
        for (int slice = 0; slice < num_slices; ++slice, ring_.advance()) {
            mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
            num_held_ = 1;
            give_back(0);
        }
    }

    // All stages but the last `keep` that were waited for.
    __device__ __forceinline__ void give_back(int keep) {
        const int lane = threadIdx.x % 32;
        for (; num_held_ > keep; --num_held_, done_.advance()) {
            if (lane < kCluster) mbarrier_arrive_at(&shared_.empty[done_.stage], lane);
        }
    }

    static constexpr int kStages = WgmmaShared<kTokens>::kStages;
    const Params<T>& p_;
    WgmmaShared<kTokens>& shared_;
    int group_, num_held_ = 0;
    Ring<kStages> ring_, done_;  // the next slice, and the first not given back
    Accumulators first_, second_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe::moe
