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

__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A barrier of all threads of the cluster, in two halves. It orders no writes but those that are fenced.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

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

#define QWEN3MOE_ACC(i) "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])
#define QWEN3MOE_ACC4(i) QWEN3MOE_ACC(i), QWEN3MOE_ACC(i + 1), QWEN3MOE_ACC(i + 2), QWEN3MOE_ACC(i + 3)
#define QWEN3MOE_ACC16(i) QWEN3MOE_ACC4(i), QWEN3MOE_ACC4(i + 4), QWEN3MOE_ACC4(i + 8), QWEN3MOE_ACC4(i + 12)
#define QWEN3MOE_WGMMA_M64N256K16(type)                                                                              \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %130, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type \
                 " {"                                                                                                \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                  \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                  \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                  \
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                  \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                  \
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
                 "%128, %129, p, 1, 1, 0, 0;}"                                                                       \
                 : QWEN3MOE_ACC16(0), QWEN3MOE_ACC16(16)                                                             \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// acc [64 x 256] = or += A [64 x 16] @ B [256 x 16]^T, asynchronously.
template <typename T>
__device__ __forceinline__ void wgmma_m64n256k16(float (&acc)[32][4], uint64_t a, uint64_t b, bool accumulate);

template <>
__device__ __forceinline__ void wgmma_m64n256k16<__nv_bfloat16>(float (&acc)[32][4], uint64_t a, uint64_t b,
                                                                bool accumulate) {
    QWEN3MOE_WGMMA_M64N256K16("bf16");
}

template <>
__device__ __forceinline__ void wgmma_m64n256k16<__half>(float (&acc)[32][4], uint64_t a, uint64_t b, bool accumulate) {
    QWEN3MOE_WGMMA_M64N256K16("f16");
}

#undef QWEN3MOE_WGMMA_M64N256K16
#undef QWEN3MOE_ACC16
#undef QWEN3MOE_ACC4
#undef QWEN3MOE_ACC

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe
