#include "peer_memory.h"

#include "failure.h"

namespace qwen3moe {

PeerMemory::PeerMemory(int32_t rank, int32_t world_size, int64_t max_message_bytes) {
    group_.rank = rank;
    group_.world_size = world_size;
    group_.capacity = num_packets(max_message_bytes);
    const size_t num_bytes = kNumSlots * world_size * group_.capacity * kPacketBytes;
    void* own = nullptr;
    expect_success(cudaMalloc(&own, num_bytes), "cudaMalloc of the memory for peers");
    group_.staging[rank] = static_cast<uint4*>(own);
    expect_success(cudaMemset(own, 0, num_bytes), "cudaMemset");
    void* state = nullptr;
    expect_success(cudaMalloc(&state, sizeof(OneShotState)), "cudaMalloc");
    group_.state = static_cast<OneShotState*>(state);
    expect_success(cudaMemset(state, 0, sizeof(OneShotState)), "cudaMemset");
    void* aborted = nullptr;
    expect_success(cudaHostAlloc(&aborted, sizeof(int32_t), cudaHostAllocMapped), "cudaHostAlloc");
    aborted_ = static_cast<int32_t*>(aborted);
    *aborted_ = 0;
    void* seen_by_gpu = nullptr;
    expect_success(cudaHostGetDevicePointer(&seen_by_gpu, aborted, 0), "cudaHostGetDevicePointer");
    group_.aborted = static_cast<const int32_t*>(seen_by_gpu);
    expect_success(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // zeros are there before a peer writes
}

PeerMemory::~PeerMemory() {
    cudaFree(group_.staging[group_.rank]);
    cudaFree(group_.state);
    cudaFreeHost(aborted_);
}

cudaIpcMemHandle_t PeerMemory::handle() const {
    cudaIpcMemHandle_t handle;
    expect_success(cudaIpcGetMemHandle(&handle, group_.staging[group_.rank]), "cudaIpcGetMemHandle");
    return handle;
}

void PeerMemory::open(const std::vector<cudaIpcMemHandle_t>& handles) {
    for (int32_t rank = 0; rank < group_.world_size; ++rank) {
        if (rank == group_.rank) continue;
        void* memory = nullptr;
        const std::string call = "cudaIpcOpenMemHandle of rank " + std::to_string(rank) + "'s memory";
        const cudaError_t error = cudaIpcOpenMemHandle(&memory, handles[rank], cudaIpcMemLazyEnablePeerAccess);
        expect_success(error, (call + " (with one_shot_bytes 0 it is not needed)").c_str());
        group_.staging[rank] = static_cast<uint4*>(memory);
    }
}

void PeerMemory::close() {
    for (int32_t rank = 0; rank < group_.world_size; ++rank) {
        if (rank == group_.rank || group_.staging[rank] == nullptr) continue;
        expect_success(cudaIpcCloseMemHandle(group_.staging[rank]), "cudaIpcCloseMemHandle");
        group_.staging[rank] = nullptr;
    }
}

}  // namespace qwen3moe
