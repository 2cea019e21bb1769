// Grouped matrix products with mma.sync: one block computes up to kTileRows rows of one expert by 128 weight rows.
// Runs on every supported GPU; at most 96 KB of shared memory, since sm_86, 89 and 120 give a block 99 KB.
#pragma once

#include "launch.cuh"
#include "moe_epilogue.cuh"
#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

constexpr int kMmaThreads = 128;
constexpr int kMmaCols = 128;

// Where few rows share a weight, bytes in flight decide: 4.3 TB/s at 1 us latency is 33 KB per multiprocessor (H200).
// 16 and 32 rows: 3 and 2 blocks of 4 stages of 18 and 20 KB. 64 rows: 2 blocks of 4 stages of 24 KB. 128 rows: 2
// blocks of 3 stages of 32 KB, in warp tiles of 64 x 64, which read 4 KB of shared memory per 64 K multiply-adds.
template <int kTileRows>
struct MmaShape {
    static constexpr int kWarpRows = kTileRows >= 64 ? 2 : 1;  // warps along the rows
    static constexpr int kWarpCols = 4 / kWarpRows;
    static constexpr int kRowFrags = kTileRows / kWarpRows / 16;
    static constexpr int kColFrags = kMmaCols / kWarpCols / 8;
    static constexpr int kStages = kTileRows == 128 ? 3 : 4;
    static constexpr int kSharedBytes = kStages * (kTileRows + kMmaCols) * kRowBytes;
    static_assert(kSharedBytes <= 99 * 1024, "must fit sm_86, sm_89 and sm_120");
};

// One warp's part of the product of a slice in shared memory.
template <typename T, int kRowFrags, int kColFrags>
class WarpMma {
   public:
    // warp_row, warp_col: the warp's corner in A's and B's rows.
    __device__ WarpMma(int warp_row, int warp_col, int tile_rows) {
        const int lane = threadIdx.x % 32;
        swizzle_ = lane % 8;
        a_half_ = lane / 16;
        b_half_ = lane / 8 % 2;
        a_offset_ = (warp_row + lane % 16) * kRowBytes;
        b_offset_ = (tile_rows + warp_col + lane / 16 * 8 + lane % 8) * kRowBytes;
    }

    __device__ void multiply(float (&acc)[kRowFrags][kColFrags][4], const unsigned char* stage) const {
        uint32_t a[2][kRowFrags][4];
        uint32_t b[2][kColFrags / 2][4];
        load(a[0], b[0], stage, 0);
#pragma unroll
        for (int k = 0; k < kSlice / 16; ++k) {
            if (k + 1 < kSlice / 16) load(a[(k + 1) % 2], b[(k + 1) % 2], stage, k + 1);
#pragma unroll
            for (int n = 0; n < kColFrags; ++n) {
                const uint32_t (&pair)[4] = b[k % 2][n / 2];
                const uint32_t fragment[2] = {pair[n % 2 * 2], pair[n % 2 * 2 + 1]};
#pragma unroll
                for (int m = 0; m < kRowFrags; ++m) mma_m16n8k16<T>(acc[m][n], a[k % 2][m], fragment);
            }
        }
    }

   private:
    __device__ void load(uint32_t (&a)[kRowFrags][4], uint32_t (&b)[kColFrags / 2][4], const unsigned char* stage,
                         int k) const {
        const unsigned char* a_row = stage + a_offset_ + ((2 * k + a_half_) ^ swizzle_) * kChunkBytes;
        const unsigned char* b_row = stage + b_offset_ + ((2 * k + b_half_) ^ swizzle_) * kChunkBytes;
#pragma unroll
        for (int m = 0; m < kRowFrags; ++m) ldmatrix_x4(a[m], a_row + m * 16 * kRowBytes);
#pragma unroll
        for (int n = 0; n < kColFrags / 2; ++n) ldmatrix_x4(b[n], b_row + n * 16 * kRowBytes);
    }

    int swizzle_, a_half_, b_half_, a_offset_, b_offset_;
};

// Grid: (column blocks, num_tiles). Columns run fastest: blocks that share rows, then those that share an expert's
// weights, run together and meet in L2.
template <typename T, Product kProduct, int kTileRows>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_gemm_kernel(Params<T> p) {
    using Shape = MmaShape<kTileRows>;
    using Loader = TileLoader<T, kProduct, kMmaThreads, kTileRows, kMmaCols>;
    constexpr int kOutputs = output_cols<kProduct>(kMmaCols);
    extern __shared__ __align__(kRowBytes) unsigned char stages[];

    // The plan is gate_up's predecessor, but down's was preceded by it: down loads its first weights ahead of the wait.
    if constexpr (kProduct == Product::kGateUp) wait_for_predecessor();
    const Tile tile = p.tiles[blockIdx.y];
    if (tile.num_rows == 0) {
        if constexpr (kProduct == Product::kDown) wait_for_predecessor();
        return;
    }
    const int first_col = blockIdx.x * kOutputs;
    const int num_k_slices = num_slices<kProduct>(p);
    Loader loader(p, tile, first_col, threadIdx.x);
    for (int s = 0; s < Shape::kStages - 1 && s < num_k_slices; ++s) loader.load_b(stages + s * Loader::kBytes, s);
    if constexpr (kProduct == Product::kDown) wait_for_predecessor();
    allow_successor();
    loader.locate_rows(p, tile);
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) {
        if (s < num_k_slices) loader.load_a(stages + s * Loader::kBytes, s);
        cp_async_commit();
    }

    const int warp = threadIdx.x / 32;
    const int warp_row = warp / Shape::kWarpCols * (Shape::kRowFrags * 16);
    const int warp_col = warp % Shape::kWarpCols * (Shape::kColFrags * 8);
    const WarpMma<T, Shape::kRowFrags, Shape::kColFrags> warp_mma(warp_row, warp_col, kTileRows);
    float acc[Shape::kRowFrags][Shape::kColFrags][4] = {};
    for (int slice = 0; slice < num_k_slices; ++slice) {
        cp_async_wait<Shape::kStages - 2>();
        __syncthreads();  // the slice has arrived for all, and all are done with the stage that is filled next
        const int ahead = slice + Shape::kStages - 1;
        if (ahead < num_k_slices) loader.load(stages + ahead % Shape::kStages * Loader::kBytes, ahead);
        cp_async_commit();
        if (warp_row < tile.num_rows) warp_mma.multiply(acc, stages + slice % Shape::kStages * Loader::kBytes);
    }
#pragma unroll
    for (int m = 0; m < Shape::kRowFrags; ++m) {
        store_rows<kProduct>(p, tile, warp_row + m * 16, first_col + output_cols<kProduct>(warp_col), acc[m]);
    }
}

}  // namespace qwen3moe::moe
