// Instructions that only sm_90a has: warpgroup matrix products, barriers in shared memory, register reallocation.
//
// wgmma takes B, and mostly A, from shared memory and accumulates in registers. A warpgroup is 4 consecutive warps;
// warp w holds rows 16 w .. 16 w + 15 of the 64, each 8 columns of them as an mma.m16n8 fragment (see mma.cuh):
// acc[column / 8][4].
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mma.cuh"

namespace qwen3moe {

constexpr int kWgmmaAlignment = 1024;  // bytes: of an operand, 8 rows of 128 bytes

// An operand whose rows are 128 bytes of K, 16-byte chunk c of row r at position c ^ (r % 8).
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* operand) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
    constexpr uint64_t kEightRows = uint64_t{kWgmmaAlignment >> 4} << 32;
    constexpr uint64_t kUnusedLeadingOffset = uint64_t{1} << 16;
    return kSwizzle128 | kEightRows | kUnusedLeadingOffset | ((shared_address(operand) & 0x3FFFF) >> 4);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Between writes of shared memory by cp.async or plain stores, once they are visible to this thread, and its wgmma.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of accumulators across a wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&acc)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])::"memory");
}

// Registers of each thread of a warpgroup, from the pool that the launch gave the block.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Behind mbarrier_init, so that the copy engine and other blocks see the barriers.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// A place in a ring of stages, and the parity of its barriers' phase.
template <int kStages>
struct Ring {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
};

// A barrier in shared memory: a phase ends after `arrivals` arrivals; waiting for parity p passes once phase p ended.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives when this thread's earlier cp.async copies have landed.
__device__ __forceinline__ void mbarrier_arrive_after_copies(uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and makes the phase wait for `bytes` of bulk copies too.
__device__ __forceinline__ void mbarrier_arrive_expecting(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Arrives at the barrier of a block of the cluster. Tells that block that this thread has read, not what it has
// written: a release to the cluster would wait for all of the thread's writes to global memory.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// Stores a word to the memory of a block of the cluster, 4 bytes that its barrier expects.
__device__ __forceinline__ void store_to(int rank, int32_t* word, int32_t value, uint64_t* barrier) {
    asm volatile(
        "{\n"
        ".reg .b32 remote, remote_barrier;\n"
        "mapa.shared::cluster.u32 remote, %0, %2;\n"
        "mapa.shared::cluster.u32 remote_barrier, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [remote], %3, [remote_barrier];\n"
        "}\n" ::"r"(shared_address(word)),
        "r"(shared_address(barrier)), "r"(rank), "r"(value)
        : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "retry:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra retry;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe
