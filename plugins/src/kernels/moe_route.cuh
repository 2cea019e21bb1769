// Routing: softmax over all experts in fp32, the top k, optional renormalisation, expert -> local slot.
// One warp per token; lane l holds the logits of experts l, l + 32, ... Its latency counts: loads are all in flight
// together, also those of expert_map, and 128 experts, four a lane, have code without branches.
#pragma once

#include "launch.cuh"
#include "mma.cuh"
#include "moe_load.cuh"
#include "moe_params.cuh"

namespace qwen3moe::moe {

constexpr int kRouteThreads = 128;

// A logit and its expert as one integer that grows with the logit and, among equals, falls with the index: a warp-wide
// maximum is one instruction, and k distinct experts come out whatever the logits are. NaN counts as largest, -0 as 0.
template <typename T>
__device__ __forceinline__ uint32_t rank_key(T logit, int expert) {
    const float value = to_float(logit);
    uint32_t bits = reinterpret_cast<const uint16_t&>(logit);
    if (value == 0.0f) bits = 0;
    const uint32_t ordered = isnan(value) ? 0xFFFFu : (bits & 0x8000u) ? 0xFFFFu ^ bits : bits | 0x8000u;
    return ordered << 16 | (0xFFFFu - expert);
}

template <typename T>
__device__ __forceinline__ float key_logit(uint32_t key) {
    const uint32_t ordered = key >> 16;
    const uint16_t bits = static_cast<uint16_t>((ordered & 0x8000u) ? ordered ^ 0x8000u : 0xFFFFu ^ ordered);
    return to_float(reinterpret_cast<const T&>(bits));
}

__device__ __forceinline__ int key_expert(uint32_t key) { return 0xFFFF - static_cast<int>(key & 0xFFFFu); }

// The same bits in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// Lane j < k ends with the key of the j-th choice, the others with 0. Consumes `keys`.
template <int kLogits>
__device__ __forceinline__ uint32_t select_top_k(uint32_t (&keys)[kLogits], int top_k, int lane) {
    uint32_t chosen = 0;
    for (int j = 0; j < top_k; ++j) {
        uint32_t best = 0;
#pragma unroll
        for (int i = 0; i < kLogits; ++i) best = max(best, keys[i]);
        best = __reduce_max_sync(~0u, best);
#pragma unroll
        for (int i = 0; i < kLogits; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
        if (lane == j) chosen = best;
    }
    return chosen;
}

struct Choice {
    float weight;
    int expert;  // logical
    int slot;    // -1: not held here, the weight is then 0
};

// Where L1 may hold what these addresses had before: ahead of a kernel's wait.
enum class Reads { kBehindWait, kAheadOfWait };

template <Reads kReads, int kLogits, typename T>
__device__ __forceinline__ Choice route_token(const Params<T>& p, int token, int lane) {
    const uint16_t* logits =
        reinterpret_cast<const uint16_t*>(p.router_logits) + static_cast<size_t>(token) * p.num_experts;
    const int* expert_map = map_of(p, token);
    uint16_t bits[kLogits];
    int slots[kLogits];
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
        const int expert = min(i * 32 + lane, p.num_experts - 1);
        bits[i] = kReads == Reads::kAheadOfWait ? __ldcg(logits + expert) : logits[expert];
        slots[i] = expert_map[expert];
    }
    uint32_t keys[kLogits], largest = 0;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
        const int expert = i * 32 + lane;
        keys[i] = expert < p.num_experts ? rank_key(reinterpret_cast<const T&>(bits[i]), expert) : 0;
        largest = max(largest, keys[i]);
    }
    const float shift = key_logit<T>(__reduce_max_sync(~0u, largest));
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) sum += keys[i] != 0 ? expf(key_logit<T>(keys[i]) - shift) : 0.0f;
    sum = warp_sum(sum);

    const uint32_t chosen = select_top_k(keys, p.top_k, lane);
    float weight = chosen != 0 ? expf(key_logit<T>(chosen) - shift) / sum : 0.0f;
    if (p.norm_topk_prob) weight /= warp_sum(weight);
    const int expert = key_expert(chosen);  // past all of them where there is no choice
    int slot = -1;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
        const int of_owner = __shfl_sync(~0u, slots[i], expert % 32);
        if (expert / 32 == i) slot = of_owner;
    }
    if (slot < 0 || slot >= p.num_local_experts) return {0.0f, expert, -1};
    return {weight, expert, slot};
}

// All lanes of a warp call; lane j < k gets the j-th choice of `token`, the others weight 0 and slot -1.
template <Reads kReads = Reads::kBehindWait, typename T>
__device__ __forceinline__ Choice route_token(const Params<T>& p, int token, int lane) {
    return p.num_experts <= 128 ? route_token<kReads, 4>(p, token, lane)
                                : route_token<kReads, kMaxExperts / 32>(p, token, lane);
}

// What assignments are sorted by.
__device__ __forceinline__ int16_t sort_key(const Choice& choice) {
    return choice.slot >= 0 ? static_cast<int16_t>(choice.expert) : kNotHeld;
}

template <typename T>
__device__ __forceinline__ void store_choice(const Params<T>& p, int token, int lane, const Choice& choice) {
    if (lane >= p.top_k) return;
    const int assignment = token * p.top_k + lane;
    p.topk_weight[assignment] = choice.weight;
    p.topk_slot[assignment] = choice.slot;
    p.topk_expert[assignment] = sort_key(choice);
}

// The choices of one token, by all threads of the block; its first warp finds them: in few-token kernels of many blocks
// every warp on its own would take longer, 1 us of an SM's instructions.
struct BlockRoute {
    Choice choices[kMaxTopK];

    template <Reads kReads, typename T>
    __device__ __forceinline__ void find(const Params<T>& p, int token) {
        if (threadIdx.x < 32) {
            const Choice choice = route_token<kReads>(p, token, threadIdx.x);
            if (threadIdx.x < kMaxTopK) choices[threadIdx.x] = choice;
        }
        __syncthreads();
    }
};

template <typename T>
__global__ void __launch_bounds__(kRouteThreads) route_kernel(Params<T> p) {
    const int lane = threadIdx.x % 32;
    const int token = blockIdx.x * (kRouteThreads / 32) + threadIdx.x / 32;
    wait_for_predecessor();
    allow_successor();
    if (token < p.num_tokens) store_choice(p, token, lane, route_token(p, token, lane));
}

}  // namespace qwen3moe::moe
