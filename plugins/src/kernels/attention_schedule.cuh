// How the decode kernel divides its work, on the device: lengths are known only there.
//
// The keys of all decode sequences, in units of 64, are dealt out in about target_items equal items. An item is one
// tile of query rows of a sequence and one split of its keys. Items of a sequence are numbered split by split, row
// tiles innermost, so that CTAs which run together read the same keys.
#pragma once

#include "attention_batch.cuh"
#include "attention_plan.h"
#include "warp_scan.cuh"

namespace qwen3moe {

__device__ __forceinline__ int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

struct DecodeItem {
    int32_t seq;
    int32_t row_tile;
    int32_t num_row_tiles;
    int32_t split;
    int32_t num_splits;
    int32_t first_partial;  // items of split sequences before this sequence's first
};

struct DecodeSchedule {
    RaggedBatch batch;
    int32_t max_decode_tokens;
    int32_t tile_tokens;  // new tokens in one tile of query rows
    int32_t target_items;

    struct Count {
        int32_t items, partials;  // partials: of the items, those of split sequences
    };
    struct Shared {
        int32_t units[DecodeConfig::kWarps];
        Count counts[DecodeConfig::kWarps];
        DecodeItem item;
    };

    __device__ __forceinline__ static int32_t num_units(const Sequence& seq) {
        return ceil_div(seq.context_len, DecodeConfig::kUnit);
    }
    __device__ __forceinline__ int32_t num_row_tiles(const Sequence& seq) const {
        return seq.num_new <= max_decode_tokens ? ceil_div(seq.num_new, tile_tokens) : 0;
    }
    __device__ __forceinline__ Count count(const Sequence& seq, int32_t split_units) const {
        const int32_t splits = ceil_div(num_units(seq), split_units), items = num_row_tiles(seq) * splits;
        return {items, splits > 1 ? items : 0};
    }

    // Item `idx` of the schedule, for all threads of the CTA; false if there are not so many. Each thread counts the
    // items of a run of sequences; the one whose run holds the item looks for it there.
    __device__ __forceinline__ bool find(int32_t idx, Shared& shared, DecodeItem& item) const {
        const int32_t run = ceil_div(batch.num_seqs, DecodeConfig::kThreads);
        const int32_t first = min(static_cast<int32_t>(threadIdx.x) * run, batch.num_seqs);
        const int32_t last = min(first + run, batch.num_seqs);

        const int32_t split_units =
            max(DecodeConfig::kMinUnits, ceil_div(total_units(first, last, shared), target_items));
        Count own = {0, 0};
        for (int32_t i = first; i < last; ++i) {
            const Count count_i = count(batch.sequence(i), split_units);
            own.items += count_i.items, own.partials += count_i.partials;
        }
        Count before;
        if (idx >= count_before(own, shared, before)) return false;

        if (before.items <= idx && idx < before.items + own.items) {
            int32_t i = first;
            for (Count c; c = count(batch.sequence(i), split_units), idx >= before.items + c.items; ++i)
                before.items += c.items, before.partials += c.partials;
            const Sequence seq = batch.sequence(i);
            const int32_t tiles = num_row_tiles(seq), local = idx - before.items;
            const int32_t splits = ceil_div(num_units(seq), split_units);
            shared.item = {i, local % tiles, tiles, local / tiles, splits, before.partials};
        }
        __syncthreads();
        item = shared.item;
        return true;
    }

    // Sets the sequence and row tile of the idx-th row tile, for all threads, each warp on its own; false if there are
    // not so many. Of at most 32 sequences.
    __device__ __forceinline__ bool find_row_tile(int32_t idx, DecodeItem& item) const {
        const int32_t lane = threadIdx.x % 32;
        const int32_t own = lane < batch.num_seqs ? num_row_tiles(batch.sequence(lane)) : 0;
        const int32_t sum = warp_inclusive_sum(own);
        const unsigned found = __ballot_sync(~0u, sum - own <= idx && idx < sum);
        if (found == 0) return false;
        item.seq = __ffs(found) - 1;
        item.num_row_tiles = __shfl_sync(~0u, own, item.seq);
        item.row_tile = idx - __shfl_sync(~0u, sum - own, item.seq);
        return true;
    }

   private:
    // Units of keys that row tiles read, of all sequences; this thread counts first..last - 1.
    __device__ __forceinline__ int32_t total_units(int32_t first, int32_t last, Shared& shared) const {
        int32_t units = 0;
#pragma unroll 2
        for (int32_t i = first; i < last; ++i) {
            const Sequence seq = batch.sequence(i);
            units += num_row_tiles(seq) * num_units(seq);
        }
        units = __reduce_add_sync(~0u, units);
        if (threadIdx.x % 32 == 0) shared.units[threadIdx.x / 32] = units;
        __syncthreads();
        int32_t total = 0;
#pragma unroll
        for (int32_t warp_units : shared.units) total += warp_units;
        return total;
    }

    // Sets `before` to the sum of the counts of all threads before this one; returns the items of all threads.
    __device__ __forceinline__ static int32_t count_before(const Count& own, Shared& shared, Count& before) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        Count sum = own;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const int32_t items = __shfl_up_sync(~0u, sum.items, offset);
            const int32_t partials = __shfl_up_sync(~0u, sum.partials, offset);
            if (lane >= offset) sum.items += items, sum.partials += partials;
        }
        if (lane == 31) shared.counts[warp] = sum;
        __syncthreads();
        before = {sum.items - own.items, sum.partials - own.partials};
        int32_t total = 0;
#pragma unroll
        for (int w = 0; w < DecodeConfig::kWarps; ++w) {
            if (w < warp) before.items += shared.counts[w].items, before.partials += shared.counts[w].partials;
            total += shared.counts[w].items;
        }
        return total;
    }
};

}  // namespace qwen3moe
