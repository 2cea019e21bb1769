// How the wgmma path's clusters divide the work, and the shared memory that their blocks do it in.
#pragma once

#include "cluster.cuh"
#include "hopper.cuh"
#include "moe_scan.cuh"
#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

constexpr int kCluster = 2;
constexpr int kWeightRows = 256;  // of a cluster's tile
constexpr int kGroupThreads = 128;
constexpr int kNumMultipliers = 2;  // warpgroups
constexpr int kWgmmaThreads = kGroupThreads * (kNumMultipliers + 1);
constexpr int kWeightBytes = kWeightRows * kRowBytes;
constexpr int kQueueSize = 16;
constexpr int kMaxLiveTiles = kChunkAssignments / kManyTileRows + kMaxExperts;

// kTokens: of a block at most.
template <int kTokens>
struct WgmmaShared {
    static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
    static constexpr int kStagingBytes = kTokens * kRowBytes;  // of a warpgroup
    // 4 of 48 KB at 128 tokens, 5 of 41 KB at 72: where tokens are few, memory decides, and more has to be on its way.
    static constexpr int kStages = (226 * 1024 - 2 * kMaxLiveTiles - kNumMultipliers * kStagingBytes) / kStageBytes;
    static_assert(2 * kStages <= kQueueSize, "a slot is written anew when all have used slices of pieces behind it");

    alignas(kWgmmaAlignment) unsigned char stages[kStages][kStageBytes];  // weights, then tokens
    alignas(kWgmmaAlignment) unsigned char staging[kNumMultipliers][kStagingBytes];
    uint64_t full[kStages];       // the loaders' copies have landed
    uint64_t empty[kStages];      // every multiplying warp of the cluster is done
    uint64_t queued[kQueueSize];  // the number of the cluster's next piece has come
    int queue[kQueueSize];
    int warp_totals[kWgmmaThreads / 32];
    int16_t live_tiles[kMaxLiveTiles];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What a block computes at a time: its tokens of a live tile, maybe none, by 256 weight rows.
struct Piece {
    bool exists;
    int slot, first_row, num_rows;
    int first_col;  // of the outputs
};

// The work: pieces (live tile, column block), columns fastest. Pieces that share rows, then those that share an
// expert's weights, run together and meet in L2.
template <Product kProduct>
struct Pieces {
    const Tile* tiles;
    const int16_t* live_tiles;
    int num_col_blocks, num_slices, rank, count;

    // By all threads; live_tiles is there behind a barrier.
    template <typename T>
    __device__ Pieces(const Params<T>& p, int16_t* live, int* warp_totals) : tiles(p.tiles), live_tiles(live) {
        const int num_outputs = kProduct == Product::kGateUp ? p.intermediate_size : p.hidden_size;
        num_col_blocks = (num_outputs + kCols - 1) / kCols;
        num_slices = moe::num_slices<kProduct>(p);
        rank = cluster_rank();
        count = num_col_blocks * list_live_tiles(p.num_tiles, live, warp_totals);
    }

    __device__ Piece operator[](int index) const {
        if (index >= count) return {};
        const int4 tile = __ldcg(reinterpret_cast<const int4*>(tiles + live_tiles[index / num_col_blocks]));
        const int half = (tile.z + 15) / 16 * 8;
        const int first = rank * half;
        return {true, tile.x, tile.y + first, min(half, tile.z - first), index % num_col_blocks * kCols};
    }
    __device__ int first() const { return blockIdx.x / kCluster; }

   private:
    static constexpr int kCols = output_cols<kProduct>(kWeightRows);

    // The numbers of the tiles that have rows, in order; returns how many.
    __device__ int list_live_tiles(int num_tiles, int16_t* live, int* warp_totals) const {
        const int per_thread = (num_tiles + kWgmmaThreads - 1) / kWgmmaThreads;
        const int begin = threadIdx.x * per_thread;
        const int end = min(begin + per_thread, num_tiles);
        int count = 0;
        for (int i = begin; i < end; ++i) count += __ldcg(&tiles[i].num_rows) > 0;
        const ScanResult scan = block_scan<kWgmmaThreads>(count, warp_totals);
        int position = scan.before;
        for (int i = begin; i < end; ++i) {
            if (__ldcg(&tiles[i].num_rows) > 0) live[position++] = static_cast<int16_t>(i);
        }
        return scan.total;
    }
};

// The pieces of a cluster: a first one by its number, then whichever is next when the loaders get there, since pieces
// differ in their tokens: dealt out in turn the last cluster would end 9 % late at 8192 tokens, 16 % at 4096.
struct Queue {
    uint64_t* queued;
    int* queue;
    Ring<kQueueSize> turn;

    __device__ int next() {
        mbarrier_wait(&queued[turn.stage], turn.parity);
        const int index = queue[turn.stage];
        turn.advance();
        return index;
    }
    // By one thread of each block, ahead of next(); the first block's `index` counts.
    __device__ void put(int index, int rank) const {
        mbarrier_arrive_expecting(&queued[turn.stage], sizeof(int));
        if (rank > 0) return;
#pragma unroll
        for (int r = 0; r < kCluster; ++r) store_to(r, &queue[turn.stage], index, &queued[turn.stage]);
    }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe::moe
