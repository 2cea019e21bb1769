// Every rank writes its message into the memory of every other, and adds up what arrives in its own.
//
// A packet of 16 bytes is two words of 8, each half message and half flag; a word is written at once, so who sees the
// flag has the data, and there is no barrier (as NCCL's LL protocol). It doubles the bytes, which latency hides for
// the messages meant here. The flag is the number of the sum, counted in device memory, so a captured graph goes on
// counting at every replay.
//
// Two slots take turns, and none is cleared: a rank that sends sum n + 2 has received all of sum n + 1, whose senders
// had ended sum n, so nobody still reads the slot that it writes to.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "one_shot.h"

namespace qwen3moe {

namespace {

constexpr int kThreads = 512;
constexpr int kMaxBlocks = 128;  // all resident at once on every GPU with peers (A100: 108 SMs, two blocks each)
constexpr int kLooksPerAbort = 1 << 12;  // a look at host memory costs 1 us over PCIe

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void round_to(float x, float& out) { out = x; }
__device__ __forceinline__ void round_to(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void round_to(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

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
        return to_float(value);
    }
    __device__ __forceinline__ void add_element(int i, float x) {
        T value;
        round_to(x, value);
        Bits part;
        memcpy(&part, &value, sizeof value);
        bits |= static_cast<uint64_t>(part) << (8 * sizeof(T) * i);
    }
};

// Elements [start, start + kElements) of the message, zeros behind its end.
template <typename T>
__device__ __forceinline__ Payload<T> load(const T* x, int64_t start, int64_t count, bool aligned) {
    constexpr int kElements = Payload<T>::kElements;
    if (aligned && start + kElements <= count) return {*reinterpret_cast<const uint64_t*>(x + start)};
    Payload<T> payload = {0};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
        if (start + i < count) payload.add_element(i, to_float(x[start + i]));
    }
    return payload;
}

template <typename T>
__device__ __forceinline__ void store(T* out, int64_t start, int64_t count, bool aligned, Payload<T> payload) {
    constexpr int kElements = Payload<T>::kElements;
    if (aligned && start + kElements <= count) {
        *reinterpret_cast<uint64_t*>(out + start) = payload.bits;
        return;
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
        if (start + i < count) round_to(payload.element(i), out[start + i]);
    }
}

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

// The last block to end counts the sum as done; every block has read the count before it arrives here.
__device__ __forceinline__ void end_sum(OneShotState* state, uint32_t flag) {
    __syncthreads();
    if (threadIdx.x != 0 || atomicAdd(&state->arrived, 1) != gridDim.x - 1) return;
    state->arrived = 0;
    state->last_flag = flag;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    one_shot_kernel(const __grid_constant__ OneShotGroup group, const T* x, T* out, int64_t count, bool aligned) {
    constexpr int kElements = Payload<T>::kElements;
    const uint32_t flag = next_flag(*reinterpret_cast<volatile uint32_t*>(&group.state->last_flag));
    const int64_t slot = (flag % kNumSlots) * group.world_size * group.capacity;
    const int64_t first = blockIdx.x * kThreads + threadIdx.x, stride = gridDim.x * kThreads;
    const int64_t end = (count + kElements - 1) / kElements;
    for (int64_t packet = first; packet < end; packet += stride) {
        const Payload<T> mine = load(x, packet * kElements, count, aligned);
#pragma unroll
        for (int rank = 0; rank < QWEN3MOE_MAX_ONE_SHOT_RANKS; ++rank) {
            if (rank >= group.world_size || rank == group.rank) continue;
            send(group.staging[rank] + slot + group.rank * group.capacity + packet, mine.bits, flag);
        }
    }
    const uint4* received = group.staging[group.rank] + slot;
    for (int64_t packet = first; packet < end; packet += stride) {
        const Payload<T> mine = load(x, packet * kElements, count, aligned);
        float sum[kElements] = {};
        for (int rank = 0; rank < group.world_size; ++rank) {
            Payload<T> term = mine;
            if (rank != group.rank) term.bits = receive(received + rank * group.capacity + packet, flag, group.aborted);
#pragma unroll
            for (int i = 0; i < kElements; ++i) sum[i] += term.element(i);
        }
        Payload<T> total = {0};
#pragma unroll
        for (int i = 0; i < kElements; ++i) total.add_element(i, sum[i]);
        store(out, packet * kElements, count, aligned, total);
    }
    end_sum(group.state, flag);
}

template <typename T>
cudaError_t launch(const OneShotGroup& group, const void* x, void* out, int64_t count, cudaStream_t stream) {
    const bool aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out)) % kPacketPayload == 0;
    const int64_t packets = num_packets(count * static_cast<int64_t>(sizeof(T)));
    const int64_t blocks = std::min<int64_t>((packets + kThreads - 1) / kThreads, kMaxBlocks);
    one_shot_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(group, static_cast<const T*>(x),
                                                                               static_cast<T*>(out), count, aligned);
    return cudaGetLastError();
}

}  // namespace

cudaError_t one_shot_all_reduce(const OneShotGroup& group, const void* x, void* out, int64_t count,
                                qwen3moe_dtype dtype, cudaStream_t stream) {
    switch (dtype) {
        case QWEN3MOE_BF16:
            return launch<__nv_bfloat16>(group, x, out, count, stream);
        case QWEN3MOE_FP16:
            return launch<__half>(group, x, out, count, stream);
        case QWEN3MOE_FP32:
            return launch<float>(group, x, out, count, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace qwen3moe
