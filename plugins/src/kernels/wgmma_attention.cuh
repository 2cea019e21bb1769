// The warpgroup products of attention: scores = queries x keys^T, and out += probabilities x values.
//
// Operands in shared memory are halves of 64 elements (128 bytes) of D, each [rows, 128 bytes] in the swizzle of
// hopper.cuh. Keys are read as they lie, K major; values transposed, as their rows are the K of the product.
#pragma once

#include "hopper.cuh"

namespace qwen3moe {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Values [keys, 64 ...] from a row on: 8 rows of a half are 1024 bytes, the next half of D lies half_bytes behind.
__device__ __forceinline__ uint64_t wgmma_rows_descriptor(const void* operand, int half_bytes) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
    constexpr uint64_t kEightRows = uint64_t{kWgmmaAlignment >> 4} << 32;
    const uint64_t next_half = static_cast<uint64_t>(half_bytes >> 4) << 16;
    return kSwizzle128 | kEightRows | next_half | ((shared_address(operand) & 0x3FFFF) >> 4);
}

#define QWEN3MOE_ACC(i) "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])
#define QWEN3MOE_ACC8(i)                                                                                 \
    QWEN3MOE_ACC(i), QWEN3MOE_ACC(i + 1), QWEN3MOE_ACC(i + 2), QWEN3MOE_ACC(i + 3), QWEN3MOE_ACC(i + 4), \
        QWEN3MOE_ACC(i + 5), QWEN3MOE_ACC(i + 6), QWEN3MOE_ACC(i + 7)

// acc [64 x 128] = or += A [64 x 16] @ B [128 x 16]^T, asynchronously.
template <typename T>
__device__ __forceinline__ void wgmma_scores(float (&acc)[16][4], uint64_t a, uint64_t b, bool accumulate);

#define QWEN3MOE_WGMMA_SCORES(type)                                                                                 \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
                 " {"                                                                                               \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                 \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                 \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                \
                 "%64, %65, p, 1, 1, 0, 0;}"                                                                        \
                 : QWEN3MOE_ACC8(0), QWEN3MOE_ACC8(8)                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
template <>
__device__ __forceinline__ void wgmma_scores<__nv_bfloat16>(float (&acc)[16][4], uint64_t a, uint64_t b,
                                                            bool accumulate) {
    QWEN3MOE_WGMMA_SCORES("bf16");
}
template <>
__device__ __forceinline__ void wgmma_scores<__half>(float (&acc)[16][4], uint64_t a, uint64_t b, bool accumulate) {
    QWEN3MOE_WGMMA_SCORES("f16");
}

// acc [64 x D] += A [64 x 16] @ B [16 x D], asynchronously; A in registers, as fragments of mma.m16n8k16.
template <typename T>
__device__ __forceinline__ void wgmma_values(float (&acc)[16][4], const uint32_t (&a)[4], uint64_t b);
template <typename T>
__device__ __forceinline__ void wgmma_values(float (&acc)[8][4], const uint32_t (&a)[4], uint64_t b);

#define QWEN3MOE_WGMMA_VALUES128(type)                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                        \
                 " {"                                                                                \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                            \
                 : QWEN3MOE_ACC8(0), QWEN3MOE_ACC8(8)                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define QWEN3MOE_WGMMA_VALUES64(type)                                                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                         \
                 " {"                                                                                \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                            \
                 : QWEN3MOE_ACC8(0)                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <>
__device__ __forceinline__ void wgmma_values<__nv_bfloat16>(float (&acc)[16][4], const uint32_t (&a)[4], uint64_t b) {
    QWEN3MOE_WGMMA_VALUES128("bf16");
}
template <>
__device__ __forceinline__ void wgmma_values<__half>(float (&acc)[16][4], const uint32_t (&a)[4], uint64_t b) {
    QWEN3MOE_WGMMA_VALUES128("f16");
}
template <>
__device__ __forceinline__ void wgmma_values<__nv_bfloat16>(float (&acc)[8][4], const uint32_t (&a)[4], uint64_t b) {
    QWEN3MOE_WGMMA_VALUES64("bf16");
}
template <>
__device__ __forceinline__ void wgmma_values<__half>(float (&acc)[8][4], const uint32_t (&a)[4], uint64_t b) {
    QWEN3MOE_WGMMA_VALUES64("f16");
}

#undef QWEN3MOE_WGMMA_VALUES64
#undef QWEN3MOE_WGMMA_VALUES128
#undef QWEN3MOE_WGMMA_SCORES
#undef QWEN3MOE_ACC8
#undef QWEN3MOE_ACC

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe
