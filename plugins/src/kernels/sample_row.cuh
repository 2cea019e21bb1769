// A row of logits for the sampler: the blocks that share it, the piece of it that a warp reads, and what tokens weigh.
#pragma once

#include "qwen3moe/kernels.h"
#include "sample_math.cuh"

namespace qwen3moe::sample {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 8;       // loads of a lane under way
constexpr int kMaxBlocks = 128;  // of a launch whose rows have several blocks: all of them are resident at once
constexpr int kMaxDigitBits = 11;
constexpr int kBins = 1 << kMaxDigitBits;

// What the blocks of one row tell each other. `slots` alternate; `bins` rotate, so that the next histogram is cleared
// while no block can still read it: its last readers have all arrived at the barrier before.
struct RowMemory {
    u64 slots[2][kMaxBlocks];
    u64 bins[3][kBins];
};

struct Args {
    qwen3moe_sample_tensors tensors;
    int vocab_size;
    RowMemory* rows;
    uint32_t* arrivals;  // [num_rows], zero at the launch
};

struct Shared {
    u64 bins[kBins];
    u64 warp_values[kWarps];
    u64 above;
    u64 digit;
};

// The blocks gridDim.x of row blockIdx.y.
class RowGroup {
   public:
    __device__ RowGroup(const Args& args) : memory_(args.rows[blockIdx.y]), arrivals_(args.arrivals[blockIdx.y]) {}

    __device__ bool alone() const { return gridDim.x == 1; }

    __device__ void sync() {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(&arrivals_, 1);
            target_ += gridDim.x;
            while (*static_cast<volatile uint32_t*>(&arrivals_) < target_) {
            }
            __threadfence();
        }
        __syncthreads();
    }

    // The greatest of the blocks' values.
    __device__ u64 exchange_max(u64 value) {
        const u64* slots = publish(value);
        u64 greatest = 0;
        for (unsigned i = threadIdx.x % 32; i < gridDim.x; i += 32) greatest = max(greatest, __ldcg(slots + i));
        return warp_max(greatest);
    }

    // The sum of the blocks' values, and in `before` that of the blocks before this one.
    __device__ u64 exchange_sum(u64 value, u64* before) {
        const u64* slots = publish(value);
        u64 total = 0, total_before = 0;
        for (unsigned i = threadIdx.x % 32; i < gridDim.x; i += 32) {
            const u64 of_block = __ldcg(slots + i);
            total += of_block;
            if (i < blockIdx.x) total_before += of_block;
        }
        *before = warp_sum(total_before);
        return warp_sum(total);
    }

    // Adds up the blocks' histograms in place.
    __device__ void add_bins(u64* bins) {
        if (alone()) return;
        u64* sum = memory_.bins[num_histograms_ % 3];
        for (int i = threadIdx.x; i < kBins; i += kThreads) {
            if (bins[i] != 0) atomicAdd(sum + i, bins[i]);
        }
        ++num_histograms_;
        clear_next_histogram();
        sync();
        for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = __ldcg(sum + i);
    }

    __device__ void clear_next_histogram() {
        u64* bins = memory_.bins[num_histograms_ % 3];
        for (int i = blockIdx.x * kThreads + threadIdx.x; i < kBins; i += gridDim.x * kThreads) bins[i] = 0;
    }

   private:
    // Where all blocks' values are, to be read with __ldcg.
    __device__ const u64* publish(u64 value) {
        u64* slots = memory_.slots[num_exchanges_++ % 2];
        if (threadIdx.x == 0) slots[blockIdx.x] = value;
        sync();
        return slots;
    }

    RowMemory& memory_;
    uint32_t& arrivals_;
    uint32_t target_ = 0;
    int num_exchanges_ = 0, num_histograms_ = 0;
};

// What a token weighs: one in the search for top_k, its w in that for top_p and in the draw, and nothing below
// `boundary`.
struct Mass {
    bool weighted;
    float max_logit, scale, min_p;
    u64 boundary;  // a place in the order

    __device__ u64 of_key(uint32_t key) const {
        return weighted ? weight(logit_of_key(key), max_logit, scale, min_p) : 1;
    }
    __device__ u64 operator()(u64 place) const { return place >= boundary ? of_key(place >> kIndexBits) : 0; }
};

// A row as one warp sees it: an unbroken piece of the logits, so that pieces follow one another as their warps do.
class Piece {
   public:
    __device__ Piece(const Args& args) : logits_(args.tensors.logits + size_t(blockIdx.y) * args.vocab_size) {
        const int num_warps = gridDim.x * kWarps, warp = blockIdx.x * kWarps + threadIdx.x / 32;
        begin_ = static_cast<int>(static_cast<int64_t>(args.vocab_size) * warp / num_warps);
        end_ = static_cast<int>(static_cast<int64_t>(args.vocab_size) * (warp + 1) / num_warps);
    }

    // Calls use(place in the order), each lane for its logits.
    template <typename Use>
    __device__ void for_each(Use use) const {
        for (int base = begin_ + threadIdx.x % 32; base < end_; base += 32 * kUnroll) {
            float logits[kUnroll];
#pragma unroll
            for (int j = 0; j < kUnroll; ++j) logits[j] = base + 32 * j < end_ ? __ldg(logits_ + base + 32 * j) : 0.0f;
#pragma unroll
            for (int j = 0; j < kUnroll; ++j) {
                if (base + 32 * j < end_) use(place_in_order(logits[j], base + 32 * j));
            }
        }
    }

    // The first index whose running sum of masses is above `rest`, which is below their sum. For a whole warp.
    __device__ int find(const Mass& mass, u64 rest) const {
        for (int base = begin_; base < end_; base += 32) {
            const int index = base + threadIdx.x % 32;
            const u64 own = index < end_ ? mass(place_in_order(__ldg(logits_ + index), index)) : 0;
            const u64 running = warp_inclusive_sum(own);
            const unsigned above = __ballot_sync(~0u, running > rest);
            if (above != 0) return base + __ffs(above) - 1;
            rest -= __shfl_sync(~0u, running, 31);
        }
        return end_ - 1;
    }

   private:
    const float* logits_;
    int begin_, end_;
};

}  // namespace qwen3moe::sample
