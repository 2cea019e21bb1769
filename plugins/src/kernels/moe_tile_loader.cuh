// Global to shared memory for the grouped matrix products: K slices of 64 elements, 128 bytes per row.
//
// Shared layout: row r at r * 128 bytes, its 16-byte chunk c at position c ^ (r % 8). Eight rows of one chunk column
// then touch all 32 banks, so ldmatrix has no conflicts; it is also the 128-byte swizzle that wgmma descriptors name.
#pragma once

#include "mma.cuh"
#include "moe_params.cuh"

namespace qwen3moe::moe {

constexpr int kSlice = 64;             // elements of K per pipeline stage
constexpr int kRowBytes = kSlice * 2;  // of a slice in shared memory
constexpr int kChunkBytes = 16;

enum class Product { kGateUp, kDown };

// Slices of K, the last of which may be partly filled.
template <Product kProduct, typename T>
__device__ __forceinline__ int num_slices(const Params<T>& p) {
    return ((kProduct == Product::kGateUp ? p.hidden_size : p.intermediate_size) + kSlice - 1) / kSlice;
}

// Output columns of a block of kCols weight rows: in gate_up every output takes a gate row and an up row.
template <Product kProduct>
__host__ __device__ constexpr int output_cols(int cols) {
    return kProduct == Product::kGateUp ? cols / 2 : cols;
}

// Loads A [kRows, K] (tokens of one expert) and B [kCols, K] (its weights) slice by slice. Thread t of the
// kThreads moves chunk t % 8 of rows t / 8, + kPass, + 2 kPass, ...
//
// B rows of gate_up stand in groups of 16: 8 gate rows, then the 8 up rows of the same features. So an mma thread holds
// gate and up of one feature in two neighbouring n8 fragments, and SwiGLU needs no exchange.
template <typename T, Product kProduct, int kThreads, int kRows, int kCols>
class TileLoader {
   public:
    static constexpr int kPass = kThreads / 8;
    static constexpr int kRowPasses = kRows / kPass;
    static constexpr int kColPasses = kCols / kPass;
    static constexpr int kBytes = (kRows + kCols) * kRowBytes;  // of one stage: A, then B
    static_assert(kRows % kPass == 0 && kCols % kPass == 0 && kPass % 16 == 0, "threads must tile both operands");

    // first_col: of the outputs. Those past the last are neither loaded nor stored; past the end of K there are zeros.
    __device__ TileLoader(const Params<T>& p, const Tile& tile, int first_col, int thread) : row_(thread / 8) {
        const int row = row_;
        const int chunk = thread % 8;
        const size_t k = kProduct == Product::kGateUp ? p.hidden_size : p.intermediate_size;
        k_left_ = static_cast<int>(k) - chunk * 8;
        const size_t num_outputs = kProduct == Product::kGateUp ? p.intermediate_size : p.hidden_size;
        const T* weights = kProduct == Product::kGateUp ? p.gate_up + tile.slot * 2 * num_outputs * k
                                                        : p.down + tile.slot * num_outputs * k;
        const size_t first_weight_row = kProduct == Product::kGateUp
                                            ? first_col + row / 16 * 8 + row % 8 + (row / 8 % 2) * num_outputs
                                            : first_col + row;
        b_ = weights + first_weight_row * k + chunk * 8;
        b_stride_ = output_cols<kProduct>(kPass) * k;
        valid_cols_ = (static_cast<int>(num_outputs) - first_col) * (kProduct == Product::kGateUp ? 2 : 1);
        a_ = (kProduct == Product::kGateUp ? p.hidden : p.activation) + chunk * 8;
        shared_offset_ = row * kRowBytes + (chunk ^ (row % 8)) * kChunkBytes;
    }

    // Rows beyond the tile's repeat its last one, or stay as they were in shared memory: their results are dropped.
    __device__ void locate_rows(const Params<T>& p, const Tile& tile) {
        num_rows_ = tile.num_rows;
#pragma unroll
        for (int i = 0; i < kRowPasses; ++i) {
            const int row = tile.first_row + min(row_ + i * kPass, tile.num_rows - 1);
            const size_t offset = kProduct == Product::kGateUp
                                      ? static_cast<size_t>(p.row_assignment[row] / p.top_k) * p.hidden_size
                                      : static_cast<size_t>(row) * p.intermediate_size;
            a_chunk_[i] = static_cast<uint32_t>(offset / 8);
        }
    }

    __device__ void load_a(unsigned char* stage, int slice) const {
#pragma unroll
        for (int i = 0; i < kRowPasses; ++i) {
            const T* source = a_ + static_cast<size_t>(a_chunk_[i]) * 8 + slice * kSlice;
            unsigned char* target = stage + shared_offset_ + i * kPass * kRowBytes;
            if (i * kPass < num_rows_) cp_async_16(target, source, has_chunk(slice));
        }
    }

    __device__ void load_b(unsigned char* stage, int slice) const {
        unsigned char* b = stage + kRows * kRowBytes + shared_offset_;
#pragma unroll
        for (int i = 0; i < kColPasses; ++i) {
            const T* source = b_ + i * b_stride_ + slice * kSlice;
            if (i * kPass < valid_cols_) cp_async_16(b + i * kPass * kRowBytes, source, has_chunk(slice));
        }
    }

    __device__ void load(unsigned char* stage, int slice) const {
        load_b(stage, slice);
        load_a(stage, slice);
    }

   private:
    __device__ bool has_chunk(int slice) const { return kProduct == Product::kGateUp || slice * kSlice < k_left_; }

    const T* a_;
    const T* b_;
    size_t b_stride_;
    int row_;
    int k_left_;  // from the thread's chunk of the first slice on
    int valid_cols_;
    int num_rows_;
    int shared_offset_;
    uint32_t a_chunk_[kRowPasses];
};

}  // namespace qwen3moe::moe
