// What a packet is, and how packets get from GPU to GPU: shared by the kernels of one_shot.cu and one_shot_norm.cu.
//
// A packet of 16 bytes is two words of 8, each half message and half flag; a word is written at once, so who sees the
// flag has the data, and there is no barrier (as NCCL's LL protocol). It doubles the bytes, which latency hides for
// the messages meant here. The flag is the number of the sum, counted in device memory, so a captured graph goes on
// counting at every replay.
//
// Two slots take turns, and none is cleared: a rank that sends sum n + 2 has received all of sum n + 1, whose senders
// had ended sum n, so nobody still reads the slot that it writes to.
#pragma once

#include <type_traits>

#include "../kernels/mma.cuh"
#include "one_shot.h"

namespace qwen3moe {

template <>
__device__ __forceinline__ float to_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

}  // namespace qwen3moe

namespace qwen3moe::one_shot {

constexpr int kLooksPerAbort = 1 << 12;  // a look at host memory costs 1 us over PCIe

// The elements of a packet as one number, the first in the lowest bits. Kept so, as an array of them would leave the
// registers.
template <typename T>
struct Payload {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
    static constexpr int kElements = kPacketPayload / sizeof(T);

    uint64_t bits;

    __device__ __forceinline__ float element(int i) const {
        const Bits part = static_cast<Bits>(bits >> (8 * sizeof(T) * i));
        T value;
        memcpy(&value, &part, sizeof value);
        return to_float<T>(value);
    }
    __device__ __forceinline__ void add_element(int i, float x) {
        const T value = from_float<T>(x);
        Bits part;
        memcpy(&part, &value, sizeof value);
        bits |= static_cast<uint64_t>(part) << (8 * sizeof(T) * i);
    }
};

__device__ __forceinline__ void send(uint4* packet, uint64_t payload, uint32_t flag) {
    const uint64_t low = (payload & 0xffffffff) | static_cast<uint64_t>(flag) << 32;
    const uint64_t high = payload >> 32 | static_cast<uint64_t>(flag) << 32;
    asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(packet), "l"(low), "l"(high) : "memory");
}

// Waits for the packet that carries `flag`; once the group is aborted, returns whatever lies there.
__device__ __forceinline__ uint64_t receive(const uint4* packet, uint32_t flag, const int32_t* aborted) {
    uint64_t low, high;
    for (uint32_t looks = 1;; ++looks) {
        asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(packet) : "memory");
        if (low >> 32 == flag && high >> 32 == flag) break;
        if (looks % kLooksPerAbort == 0 && *reinterpret_cast<const volatile int32_t*>(aborted) != 0) break;
    }
    return (low & 0xffffffff) | high << 32;
}

// 0 is what the memory held before the first sum, and a flag's parity is its slot: 2 follows the largest, which is odd.
__device__ __forceinline__ uint32_t next_flag(uint32_t last) { return last == 0xffffffff ? 2 : last + 1; }

// One sum under way: the flag of its packets, and its slot in the ranks' memory.
struct Exchange {
    const OneShotGroup& group;
    uint32_t flag;
    int64_t slot;

    __device__ __forceinline__ explicit Exchange(const OneShotGroup& group)
        : group(group),
          flag(next_flag(*reinterpret_cast<volatile uint32_t*>(&group.state->last_flag))),
          slot((flag % kNumSlots) * group.world_size * group.capacity) {}

    // Sends this rank's part of the sum to every other rank.
    template <typename T>
    __device__ __forceinline__ void give(int64_t packet, Payload<T> mine) const {
#pragma unroll
        for (int rank = 0; rank < QWEN3MOE_MAX_ONE_SHOT_RANKS; ++rank) {
            if (rank >= group.world_size || rank == group.rank) continue;
            send(group.staging[rank] + slot + group.rank * group.capacity + packet, mine.bits, flag);
        }
    }

    // The sum of all ranks' parts, in their order, so that every rank gets the same bits.
    template <typename T>
    __device__ __forceinline__ Payload<T> take(int64_t packet, Payload<T> mine) const {
        const uint4* received = group.staging[group.rank] + slot + packet;
        float sum[Payload<T>::kElements] = {};
        for (int rank = 0; rank < group.world_size; ++rank) {
            Payload<T> part = mine;
            if (rank != group.rank) part.bits = receive(received + rank * group.capacity, flag, group.aborted);
#pragma unroll
            for (int i = 0; i < part.kElements; ++i) sum[i] += part.element(i);
        }
        Payload<T> total = {0};
#pragma unroll
        for (int i = 0; i < total.kElements; ++i) total.add_element(i, sum[i]);
        return total;
    }

    // To be called by every thread, last. The last block to end counts the sum as done; each has read the count before.
    __device__ __forceinline__ void end() const {
        __syncthreads();
        if (threadIdx.x != 0 || atomicAdd(&group.state->arrived, 1) != gridDim.x - 1) return;
        group.state->arrived = 0;
        group.state->last_flag = flag;
    }
};

}  // namespace qwen3moe::one_shot
