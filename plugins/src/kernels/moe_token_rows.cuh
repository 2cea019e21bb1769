// The tokens of a tile to shared memory, for the wgmma path: rows that are gathered 16 bytes at a time.
#pragma once

#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

// Thread t of kThreads moves chunk t % 8 of rows t / 8, + kPass, + 2 kPass, ... of at most kRows rows.
template <typename T, Product kProduct, int kThreads, int kRows>
class TokenRows {
   public:
    static constexpr int kPass = kThreads / 8;
    static constexpr int kPasses = (kRows + kPass - 1) / kPass;
    static_assert(kPass % 8 == 0, "a thread's rows must be swizzled alike");

    __device__ TokenRows(const Params<T>& p, int thread) : row_(thread / 8), chunk_(thread % 8) {
        const int k = kProduct == Product::kGateUp ? p.hidden_size : p.intermediate_size;
        k_left_ = k - chunk_ * 8;
        base_ = (kProduct == Product::kGateUp ? p.hidden : p.activation) + chunk_ * 8;
        shared_offset_ = row_ * kRowBytes + (chunk_ ^ (row_ % 8)) * kChunkBytes;
    }

    // Sorted rows [first_row, first_row + num_rows). What is behind them in shared memory stays as it is.
    __device__ void locate(const Params<T>& p, int first_row, int num_rows) {
        num_rows_ = num_rows;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            if (row_ + i * kPass >= num_rows) break;
            const int row = first_row + row_ + i * kPass;
            const size_t offset = kProduct == Product::kGateUp
                                      ? static_cast<size_t>(p.row_assignment[row] / p.top_k) * p.hidden_size
                                      : static_cast<size_t>(row) * p.intermediate_size;
            chunks_[i] = static_cast<uint32_t>(offset / 8);
        }
    }

    __device__ void load(unsigned char* stage, int slice) const {
        const bool inside = kProduct == Product::kGateUp || slice * kSlice < k_left_;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            if (row_ + i * kPass >= num_rows_) break;
            const T* source = base_ + static_cast<size_t>(chunks_[i]) * 8 + slice * kSlice;
            cp_async_16(stage + shared_offset_ + i * kPass * kRowBytes, source, inside);
        }
    }

   private:
    const T* base_;
    int row_, chunk_, num_rows_, k_left_, shared_offset_;
    uint32_t chunks_[kPasses];
};

}  // namespace qwen3moe::moe
