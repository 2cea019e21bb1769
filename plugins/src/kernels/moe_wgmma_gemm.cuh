// Grouped matrix products with wgmma, for Hopper and many tokens: one persistent block per multiprocessor, a warpgroup
// that loads and two that each multiply 64 rows by 256 weight rows of a tile of 128 rows.
//
// 128 x 256 does 85 operations per byte that L2 delivers, where the mma path's 128 x 128 does 64: 600 TFLOP/s then take
// 7 TB/s, about what L2 gives. Rows are gathered with cp.async into the swizzle that wgmma reads. At 8192 tokens on an
// H200, weights by the copy engine took as long, and shared by a cluster of two blocks half as long again.
#pragma once

#include "hopper.cuh"
#include "launch.cuh"
#include "moe_epilogue.cuh"
#include "moe_scan.cuh"
#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

constexpr int kWgmmaRows = 128;
constexpr int kWgmmaCols = 256;
constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;
constexpr int kNumMultipliers = kWgmmaRows / kGroupRows;  // warpgroups
constexpr int kWgmmaThreads = kGroupThreads * (kNumMultipliers + 1);
constexpr int kLoaderRegisters = 56;       // of a thread; 128 * 56 + 256 * 224 = 64512 of 65536
constexpr int kMultiplierRegisters = 224;  // 128 of them accumulators
constexpr int kWgmmaStages = 4;            // of 48 KB: one multiplied while three are on their way
constexpr int kWgmmaStageBytes = (kWgmmaRows + kWgmmaCols) * kRowBytes;
constexpr int kMaxWgmmaTiles = kChunkTokens * kMaxTopK / kWgmmaRows + kMaxExperts;

struct WgmmaShared {
    alignas(kWgmmaAlignment) unsigned char stages[kWgmmaStages][kWgmmaStageBytes];
    uint64_t full[kWgmmaStages];   // the loaders' copies have landed
    uint64_t empty[kWgmmaStages];  // every multiplying warp is done
    int warp_totals[kWgmmaThreads / 32];
    int16_t live_tiles[kMaxWgmmaTiles];
};
static_assert(sizeof(WgmmaShared) <= 227 * 1024, "must fit sm_90");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The numbers of the tiles that have rows, in order; returns how many. Dealing these out in turn loads the blocks
// evenly; with the empty ones (10 % at 8192 tokens) some blocks would get 10 % more work than the mean.
__device__ inline int list_live_tiles(const Tile* tiles, int num_tiles, WgmmaShared& shared) {
    const int per_thread = (num_tiles + kWgmmaThreads - 1) / kWgmmaThreads;
    const int begin = threadIdx.x * per_thread;
    const int end = min(begin + per_thread, num_tiles);
    int count = 0;
    for (int i = begin; i < end; ++i) count += tiles[i].num_rows > 0;
    const ScanResult scan = block_scan<kWgmmaThreads>(count, shared.warp_totals);
    int position = scan.before;
    for (int i = begin; i < end; ++i) {
        if (tiles[i].num_rows > 0) shared.live_tiles[position++] = static_cast<int16_t>(i);
    }
    return scan.total;
}

// The block's share of the work: pieces (live tile, column block), columns fastest. Pieces that share rows, then those
// that share an expert's weights, run together and meet in L2.
struct Pieces {
    int count;
    int col_blocks;
    int cols;        // outputs per piece
    int num_slices;  // of K

    __device__ Tile tile(const Tile* tiles, const WgmmaShared& shared, int piece) const {
        return tiles[shared.live_tiles[piece / col_blocks]];
    }
    __device__ int first_col(int piece) const { return piece % col_blocks * cols; }
};

// The stages in turn; `parity` is that of the current pass over them.
struct Ring {
    int stage = 0;
    int parity = 0;

    __device__ void advance() {
        if (++stage == kWgmmaStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <typename T, Product kProduct>
__device__ __forceinline__ void load_pieces(const Params<T>& p, const Pieces& pieces, WgmmaShared& shared) {
    using Loader = TileLoader<T, kProduct, kGroupThreads, kWgmmaRows, kWgmmaCols>;
    Ring ring;
    for (int piece = blockIdx.x; piece < pieces.count; piece += gridDim.x) {
        const Tile tile = pieces.tile(p.tiles, shared, piece);
        Loader loader(p, tile, pieces.first_col(piece), threadIdx.x % kGroupThreads);
        loader.locate_rows(p, tile);
        for (int slice = 0; slice < pieces.num_slices; ++slice, ring.advance()) {
            mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            loader.load(shared.stages[ring.stage], slice);
            mbarrier_arrive_after_copies(&shared.full[ring.stage]);
        }
    }
    cp_async_commit();
    cp_async_wait<0>();  // no thread leaves with copies on their way
}

// acc = rows x weight rows over all slices. A slice's stage is given back when the next slice's product has been
// started behind it, so that the tensor cores never wait for a barrier.
template <typename T>
__device__ __forceinline__ void multiply_slices(float (&acc)[kWgmmaCols / 8][4], WgmmaShared& shared, Ring& ring,
                                                int num_slices, int group_row) {
    const bool is_elected = threadIdx.x % 32 == 0;
    int running = ring.stage;
    for (int slice = 0; slice < num_slices; ++slice, ring.advance()) {
        mbarrier_wait(&shared.full[ring.stage], ring.parity);
        const unsigned char* stage = shared.stages[ring.stage];
        const uint64_t a = wgmma_descriptor(stage + group_row * kRowBytes);
        const uint64_t b = wgmma_descriptor(stage + kWgmmaRows * kRowBytes);
        fence_async_proxy();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kSlice / 16; ++k)  // 32 bytes, in 16ths
            wgmma_m64n256k16<T>(acc, a + k * 2, b + k * 2, slice + k > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (slice > 0 && is_elected) mbarrier_arrive(&shared.empty[running]);
        running = ring.stage;
    }
    wgmma_wait<0>();
    pin(acc);
    if (is_elected) mbarrier_arrive(&shared.empty[running]);
}

// The same for a group without rows in the tile: it only gives the stages back.
__device__ __forceinline__ void skip_slices(WgmmaShared& shared, Ring& ring, int num_slices) {
    for (int slice = 0; slice < num_slices; ++slice, ring.advance()) {
        mbarrier_wait(&shared.full[ring.stage], ring.parity);
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[ring.stage]);
    }
}

template <typename T, Product kProduct>
__device__ __forceinline__ void multiply_pieces(const Params<T>& p, const Pieces& pieces, WgmmaShared& shared,
                                                int group) {
    const int group_row = group * kGroupRows;
    const int warp_row = group_row + threadIdx.x / 32 % 4 * 16;
    Ring ring;
    for (int piece = blockIdx.x; piece < pieces.count; piece += gridDim.x) {
        const Tile tile = pieces.tile(p.tiles, shared, piece);
        if (group_row >= tile.num_rows) {
            skip_slices(shared, ring, pieces.num_slices);
            continue;
        }
        float acc[kWgmmaCols / 8][4];
        multiply_slices<T>(acc, shared, ring, pieces.num_slices, group_row);
        store_rows<kProduct>(p, tile, warp_row, pieces.first_col(piece), acc);
    }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Grid: one block per multiprocessor.
template <typename T, Product kProduct>
__global__ void __launch_bounds__(kWgmmaThreads, 1) wgmma_gemm_kernel(Params<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kWgmmaAlignment) unsigned char dynamic_shared[];
    WgmmaShared& shared = *reinterpret_cast<WgmmaShared*>(dynamic_shared);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kWgmmaStages; ++stage) {
            mbarrier_init(&shared.full[stage], kGroupThreads);
            mbarrier_init(&shared.empty[stage], kNumMultipliers * kGroupThreads / 32);
        }
    }
    wait_for_predecessor();
    allow_successor();
    Pieces pieces;
    const int num_outputs = kProduct == Product::kGateUp ? p.intermediate_size : p.hidden_size;
    pieces.cols = output_cols<kProduct>(kWgmmaCols);
    pieces.col_blocks = (num_outputs + pieces.cols - 1) / pieces.cols;
    pieces.num_slices = num_slices<kProduct>(p);
    pieces.count = list_live_tiles(p.tiles, p.num_tiles, shared) * pieces.col_blocks;
    __syncthreads();  // the barriers and the list are ready

    const int group = threadIdx.x / kGroupThreads;
    if (group == kNumMultipliers) {
        shrink_registers<kLoaderRegisters>();
        load_pieces<T, kProduct>(p, pieces, shared);
    } else {
        grow_registers<kMultiplierRegisters>();
        multiply_pieces<T, kProduct>(p, pieces, shared, group);
    }
#else
    __trap();  // built without sm_90a: chosen for compute capability 9.0 only
#endif
}

}  // namespace qwen3moe::moe
