// Sorts assignments by expert, stably, and cuts each expert's rows into tiles. One thread block per logical expert.
//
// Each block reads all N expert numbers (2 bytes each) and so needs nothing from the others: no counters to clear, no
// atomics, the same order every time. That is 2 N * E comparisons: 17 M at 8192 tokens of 30B-A3B, 12 us of 1370.
#pragma once

#include "launch.cuh"
#include "mma.cuh"
#include "moe_load.cuh"
#include "moe_params.cuh"
#include "moe_route.cuh"
#include "moe_scan.cuh"

namespace qwen3moe::moe {

constexpr int kPlanThreads = 512;
constexpr int kVector = 8;  // expert numbers in 16 bytes
// Up to one token a warp, the blocks route the tokens themselves, each all of them: a launch less, of 2 us.
constexpr int kMaxRoutedByPlan = kPlanThreads / 32;

// Calls visit(a, topk_expert[a]) for a in [begin, end); begin is a multiple of 8.
template <typename Visit>
__device__ __forceinline__ void for_each_expert(const int16_t* topk_expert, int begin, int end, Visit visit) {
    for (int a = begin; a < end; a += kVector) {
        const uint4 vector = *reinterpret_cast<const uint4*>(topk_expert + a);
        const int16_t* experts = reinterpret_cast<const int16_t*>(&vector);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (a + i < end) visit(a + i, experts[i]);
        }
    }
}

// Routes a token a warp; the first block stores the choices. experts [T, k], as Params::topk_expert.
template <typename T>
__device__ __forceinline__ void route_tokens(const Params<T>& p, int16_t* experts) {
    const int token = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token < p.num_tokens) {
        const Choice choice = route_token(p, token, lane);
        if (lane < p.top_k) experts[token * p.top_k + lane] = sort_key(choice);
        if (blockIdx.x == 0) store_choice(p, token, lane, choice);
    }
    __syncthreads();
}

// Grid: E. kRoutes: no route_kernel ran.
template <typename T, bool kRoutes>
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(Params<T> p) {
    __shared__ int totals_own[kPlanThreads / 32];
    __shared__ int totals_less[kPlanThreads / 32];
    const int expert = blockIdx.x;
    const int num_assignments = p.num_tokens * p.top_k;
    const int span = (num_assignments + kPlanThreads * kVector - 1) / (kPlanThreads * kVector) * kVector;
    const int begin = min(static_cast<int>(threadIdx.x) * span, num_assignments);
    const int end = min(begin + span, num_assignments);
    wait_for_predecessor();
    allow_successor();

    const int16_t* topk_expert = p.topk_expert;
    if constexpr (kRoutes) {
        __shared__ alignas(16) int16_t experts[kMaxRoutedByPlan * kMaxTopK];
        route_tokens(p, experts);
        topk_expert = experts;
    }
    int own = 0, less = 0;
    for_each_expert(topk_expert, begin, end, [&](int, int e) {
        own += e == expert;
        less += e < expert;
    });
    const ScanResult scan = block_scan<kPlanThreads>(own, totals_own);
    const int first_row = block_scan<kPlanThreads>(less, totals_less).total;

    const int num_counted = counted_assignments(p);
    int row = first_row + scan.before, served = 0;
    for_each_expert(topk_expert, begin, end, [&](int assignment, int e) {
        if (e != expert) return;
        p.row_assignment[row++] = assignment;
        served += assignment < num_counted;
    });
    add_load(p, expert, served);

    // Expert e's tiles start at first_row / tile_rows + e: apart from the next expert's, since
    // floor((r + n) / m) + 1 >= floor(r / m) + ceil(n / m). Tiles left over between two experts get no rows.
    const int tile_rows = p.tile_rows;
    const int first_tile = first_row / tile_rows + expert;
    const int next_tile = expert + 1 < p.num_experts ? (first_row + scan.total) / tile_rows + expert + 1 : p.num_tiles;
    const int slot = held_slot(p, expert);
    for (int tile = first_tile + threadIdx.x; tile < next_tile; tile += kPlanThreads) {
        const int offset = (tile - first_tile) * tile_rows;
        p.tiles[tile] = Tile{slot, first_row + offset, max(0, min(tile_rows, scan.total - offset))};
    }
}

}  // namespace qwen3moe::moe
