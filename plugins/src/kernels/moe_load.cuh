// Experts with replicas: which of them serves a token, and how many tokens each expert served here.
//
// A row of expert_map says where experts are for every R-th position. In all rows an expert has one slot here, or -1:
// rows differ in which tokens it serves. Integers are added up with atomics, whose order changes no bit.
#pragma once

#include "moe_params.cuh"

namespace qwen3moe::moe {

// expert_map as it is for `token`: [E].
template <typename T>
__device__ __forceinline__ const int* map_of(const Params<T>& p, int token) {
    if (p.map_rows <= 1) return p.expert_map;
    const unsigned position = static_cast<unsigned>(p.positions[token]);  // of padding anything
    return p.expert_map + position % p.map_rows * p.num_experts;
}

// Where an expert is here, whichever tokens it serves. Called by whole warps.
template <typename T>
__device__ __forceinline__ int held_slot(const Params<T>& p, int expert) {
    if (p.map_rows <= 1) return p.expert_map[expert];
    const int row = threadIdx.x % 32;
    const int slot = row < p.map_rows ? p.expert_map[row * p.num_experts + expert] : -1;
    return __reduce_max_sync(~0u, slot < p.num_local_experts ? slot : -1);  // a builder may run it on anything
}

// The chunk's assignments that are of tokens, not of padding. 0 where nothing is counted.
template <typename T>
__device__ __forceinline__ int counted_assignments(const Params<T>& p) {
    return p.load == nullptr ? 0 : (*p.tokens_end - p.first_token) * p.top_k;
}

// What the threads of a warp counted of one expert. Called by whole warps.
template <typename T>
__device__ __forceinline__ void add_load(const Params<T>& p, int expert, int count) {
    const int of_warp = __reduce_add_sync(~0u, count);
    if (of_warp > 0 && threadIdx.x % 32 == 0) atomicAdd(p.load + expert, of_warp);
}

// One assignment, by a thread.
template <typename T>
__device__ __forceinline__ void count_assignment(const Params<T>& p, int assignment, int expert) {
    if (assignment < counted_assignments(p)) atomicAdd(p.load + expert, 1);
}

}  // namespace qwen3moe::moe
