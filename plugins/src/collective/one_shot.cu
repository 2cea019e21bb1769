// Every rank writes its message into the memory of every other, and adds up what arrives in its own.
#include <algorithm>

#include "one_shot_packets.cuh"

namespace qwen3moe {

namespace {

using namespace one_shot;

constexpr int kThreads = 128;
constexpr int kMaxBlocks = 528;  // four for each SM of an H200

// Elements [start, start + kElements) of the message, zeros behind its end.
template <typename T>
__device__ __forceinline__ Payload<T> load(const T* x, int64_t start, int64_t count, bool aligned) {
    constexpr int kElements = Payload<T>::kElements;
    if (aligned && start + kElements <= count) return {*reinterpret_cast<const uint64_t*>(x + start)};
    Payload<T> payload = {0};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
        if (start + i < count) payload.add_element(i, to_float<T>(x[start + i]));
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
        if (start + i < count) out[start + i] = from_float<T>(payload.element(i));
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    one_shot_kernel(const __grid_constant__ OneShotGroup group, const T* x, T* out, int64_t count, bool aligned) {
    constexpr int kElements = Payload<T>::kElements;
    const Exchange exchange(group);
    const int64_t first = blockIdx.x * kThreads + threadIdx.x, stride = gridDim.x * kThreads;
    const int64_t end = (count + kElements - 1) / kElements;
    for (int64_t packet = first; packet < end; packet += stride) {
        exchange.give(packet, load(x, packet * kElements, count, aligned));
    }
    for (int64_t packet = first; packet < end; packet += stride) {
        const Payload<T> mine = load(x, packet * kElements, count, aligned);
        store(out, packet * kElements, count, aligned, exchange.take(packet, mine));
    }
    exchange.end();
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
