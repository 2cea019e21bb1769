// Sorts assignments by expert, stably, and cuts each expert's rows into tiles. One thread block per expert.
//
// Each block reads all N expert numbers (2 bytes each) and so needs nothing from the others: the same order every
// time. That is 2 N * E comparisons: 17 M at 8192 tokens of 30B-A3B.
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
constexpr int kPlanWarps = kPlanThreads / 32;
// Loads of a thread in flight where there are many: two rounds for 8192 tokens at top 8. With as many at 64 tokens,
// where one load each is all, the kernel took 2 us longer.
constexpr int kPlanBatch = 8;
constexpr int kMaxInOneLoad = kPlanThreads * kVector;
// Up to one token a warp, the blocks route the tokens themselves, each all of them: a launch less, of 2 us.
constexpr int kMaxRoutedByPlan = kPlanWarps;

struct alignas(16) ExpertVector {
    int16_t experts[kVector];
};

// What is at `end` or behind it is held by no expert.
__device__ __forceinline__ ExpertVector load_experts(const int16_t* topk_expert, int at, int end) {
    ExpertVector vector;
    if (at < end) vector = *reinterpret_cast<const ExpertVector*>(topk_expert + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) vector.experts[i] = at + i < end ? vector.experts[i] : kNotHeld;
    return vector;
}

// Calls visit(a, topk_expert[a .. a + 7]) for the assignments of [begin, end) in order, 8 a lane, all lanes of a warp
// together; begin is a multiple of 8.
template <int kBatch, typename Visit>
__device__ __forceinline__ void for_each_vector(const int16_t* topk_expert, int begin, int end, Visit visit) {
    constexpr int kStep = 32 * kVector;
    const int offset = threadIdx.x % 32 * kVector;
    for (; begin < end; begin += kBatch * kStep) {
        ExpertVector vectors[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) vectors[i] = load_experts(topk_expert, begin + i * kStep + offset, end);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (begin + i * kStep < end) visit(begin + i * kStep + offset, vectors[i]);
        }
    }
}

// Writes the numbers of the expert's assignments in [begin, end) to `rows`, in order, by one warp.
template <int kBatch>
__device__ __forceinline__ void list_assignments(int* rows, const int16_t* topk_expert, int begin, int end,
                                                 int expert) {
    for_each_vector<kBatch>(topk_expert, begin, end, [&](int first, const ExpertVector& vector) {
        int count = 0;
#pragma unroll
        for (int i = 0; i < kVector; ++i) count += vector.experts[i] == expert;
        if (!__any_sync(~0u, count > 0)) return;
        int row = warp_inclusive_sum(count);
        const int total = __shfl_sync(~0u, row, 31);
        row -= count;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (vector.experts[i] == expert) rows[row++] = first + i;
        }
        rows += total;
    });
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

// Grid: E. kRoutes: no route_kernel ran. kBatch 1: for up to kMaxInOneLoad assignments.
template <typename T, bool kRoutes, int kBatch>
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(Params<T> p) {
    __shared__ int totals_own[kPlanWarps];
    __shared__ int totals_less[kPlanWarps];
    const int expert = blockIdx.x;
    const int num_assignments = p.num_tokens * p.top_k;
    constexpr int kStep = kPlanThreads * kVector;
    const int span = (num_assignments + kStep - 1) / kStep * (32 * kVector);  // of a warp
    const int begin = min(static_cast<int>(threadIdx.x) / 32 * span, num_assignments);
    const int end = min(begin + span, num_assignments);
    wait_for_predecessor();
    allow_successor();

    const int16_t* topk_expert = p.topk_expert;
    if constexpr (kRoutes) {
        __shared__ alignas(16) int16_t experts[kMaxRoutedByPlan * kMaxTopK];
        route_tokens(p, experts);
        topk_expert = experts;
    }
    if (expert == 0 && threadIdx.x < 2) p.counters[threadIdx.x] = 0;
    const int num_counted = counted_assignments(p);
    int own = 0, less = 0, served = 0;
    for_each_vector<kBatch>(topk_expert, begin, end, [&](int first, const ExpertVector& vector) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            own += vector.experts[i] == expert;
            less += vector.experts[i] < expert;
            served += vector.experts[i] == expert && first + i < num_counted;
        }
    });
    const ScanResult scan = block_scan<kPlanThreads>(own, totals_own);
    const int first_row = block_scan<kPlanThreads>(less, totals_less).total;
    const int warp_row = first_row + __shfl_sync(~0u, scan.before, 0);
    list_assignments<kBatch>(p.row_assignment + warp_row, topk_expert, begin, end, expert);
    add_load(p, expert, served);

    // Expert e's tiles start at first_row / tile_rows + e: apart from the next expert's, since
    // floor((r + n) / m) + 1 >= floor(r / m) + ceil(n / m). Tiles left over between two experts get no rows. Those of
    // an expert have the same number of rows, up to 8.
    const int tile_rows = p.tile_rows;
    const int first_tile = first_row / tile_rows + expert;
    const int next_tile = expert + 1 < p.num_experts ? (first_row + scan.total) / tile_rows + expert + 1 : p.num_tiles;
    const int num_full = max(1, (scan.total + tile_rows - 1) / tile_rows);
    const int even_rows = ((scan.total + num_full - 1) / num_full + 7) / 8 * 8;
    const int slot = held_slot(p, expert);
    for (int tile = first_tile + threadIdx.x; tile < next_tile; tile += kPlanThreads) {
        const int offset = (tile - first_tile) * even_rows;
        p.tiles[tile] = Tile{slot, first_row + offset, max(0, min(even_rows, scan.total - offset))};
    }
}

}  // namespace qwen3moe::moe
