// A sum over the GPUs of one host in one kernel, for messages so small that latency decides.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "qwen3moe/collective.h"

namespace qwen3moe {

constexpr int64_t kPacketPayload = 8;  // bytes of the message in a packet
constexpr int64_t kPacketBytes = 16;
constexpr int kNumSlots = 2;

constexpr int64_t num_packets(int64_t num_bytes) { return (num_bytes + kPacketPayload - 1) / kPacketPayload; }

struct OneShotState {
    uint32_t last_flag;  // of the latest sum that ended; 0 before the first
    uint32_t arrived;    // blocks of the sum under way that have ended
};

// What the kernel knows of the group. Passed to it by value.
struct OneShotGroup {
    uint4* staging[QWEN3MOE_MAX_ONE_SHOT_RANKS];  // every rank's, as mapped here: [kNumSlots, world_size, capacity]
    OneShotState* state;                          // this rank's, in its device memory
    const int32_t* aborted;                       // in host memory: not 0 once nothing is to be waited for
    int64_t capacity;                             // packets of the largest message
    int32_t rank, world_size;
};

// What AllReduce and AddRMSNorm give one after the other, for 16-bit types.
struct OneShotNorm {
    const void *x, *residual;  // [T, H]
    const void* weight;        // [H]
    void *out, *residual_out;  // [T, H]
    int32_t num_tokens;
    int32_t hidden_size;  // as RMSNorm's
    float eps;
};
cudaError_t one_shot_all_reduce_add_rms_norm(const OneShotGroup& group, const OneShotNorm& norm, qwen3moe_dtype dtype,
                                             cudaStream_t stream);

// out = the sum of x over the ranks, added in fp32 in their order and rounded once.
cudaError_t one_shot_all_reduce(const OneShotGroup& group, const void* x, void* out, int64_t count,
                                qwen3moe_dtype dtype, cudaStream_t stream);

}  // namespace qwen3moe
