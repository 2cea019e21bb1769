// wgmma products of 64 rows of A by 8, 16, ..., 128 rows of B (sm_90a).
#pragma once

#include <type_traits>

#include "hopper.cuh"

namespace qwen3moe {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define QWEN3MOE_REGS_1 "%0, %1, %2, %3"
#define QWEN3MOE_REGS_2 QWEN3MOE_REGS_1 ", %4, %5, %6, %7"
#define QWEN3MOE_REGS_3 QWEN3MOE_REGS_2 ", %8, %9, %10, %11"
#define QWEN3MOE_REGS_4 QWEN3MOE_REGS_3 ", %12, %13, %14, %15"
#define QWEN3MOE_REGS_5 QWEN3MOE_REGS_4 ", %16, %17, %18, %19"
#define QWEN3MOE_REGS_6 QWEN3MOE_REGS_5 ", %20, %21, %22, %23"
#define QWEN3MOE_REGS_7 QWEN3MOE_REGS_6 ", %24, %25, %26, %27"
#define QWEN3MOE_REGS_8 QWEN3MOE_REGS_7 ", %28, %29, %30, %31"
#define QWEN3MOE_REGS_9 QWEN3MOE_REGS_8 ", %32, %33, %34, %35"
#define QWEN3MOE_REGS_10 QWEN3MOE_REGS_9 ", %36, %37, %38, %39"
#define QWEN3MOE_REGS_11 QWEN3MOE_REGS_10 ", %40, %41, %42, %43"
#define QWEN3MOE_REGS_12 QWEN3MOE_REGS_11 ", %44, %45, %46, %47"
#define QWEN3MOE_REGS_13 QWEN3MOE_REGS_12 ", %48, %49, %50, %51"
#define QWEN3MOE_REGS_14 QWEN3MOE_REGS_13 ", %52, %53, %54, %55"
#define QWEN3MOE_REGS_15 QWEN3MOE_REGS_14 ", %56, %57, %58, %59"
#define QWEN3MOE_REGS_16 QWEN3MOE_REGS_15 ", %60, %61, %62, %63"

#define QWEN3MOE_ACC(i) "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])
#define QWEN3MOE_ACCS_1 QWEN3MOE_ACC(0)
#define QWEN3MOE_ACCS_2 QWEN3MOE_ACCS_1, QWEN3MOE_ACC(1)
#define QWEN3MOE_ACCS_3 QWEN3MOE_ACCS_2, QWEN3MOE_ACC(2)
#define QWEN3MOE_ACCS_4 QWEN3MOE_ACCS_3, QWEN3MOE_ACC(3)
#define QWEN3MOE_ACCS_5 QWEN3MOE_ACCS_4, QWEN3MOE_ACC(4)
#define QWEN3MOE_ACCS_6 QWEN3MOE_ACCS_5, QWEN3MOE_ACC(5)
#define QWEN3MOE_ACCS_7 QWEN3MOE_ACCS_6, QWEN3MOE_ACC(6)
#define QWEN3MOE_ACCS_8 QWEN3MOE_ACCS_7, QWEN3MOE_ACC(7)
#define QWEN3MOE_ACCS_9 QWEN3MOE_ACCS_8, QWEN3MOE_ACC(8)
#define QWEN3MOE_ACCS_10 QWEN3MOE_ACCS_9, QWEN3MOE_ACC(9)
#define QWEN3MOE_ACCS_11 QWEN3MOE_ACCS_10, QWEN3MOE_ACC(10)
#define QWEN3MOE_ACCS_12 QWEN3MOE_ACCS_11, QWEN3MOE_ACC(11)
#define QWEN3MOE_ACCS_13 QWEN3MOE_ACCS_12, QWEN3MOE_ACC(12)
#define QWEN3MOE_ACCS_14 QWEN3MOE_ACCS_13, QWEN3MOE_ACC(13)
#define QWEN3MOE_ACCS_15 QWEN3MOE_ACCS_14, QWEN3MOE_ACC(14)
#define QWEN3MOE_ACCS_16 QWEN3MOE_ACCS_15, QWEN3MOE_ACC(15)

// groups of 8 tokens; the numbers of the operands behind the accumulators.
#define QWEN3MOE_WGMMA(groups, n, a_operand, b_operand, scale_operand, type)                               \
    if constexpr (kGroups == groups)                                                                       \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " scale_operand ", 0; wgmma.mma_async.sync.aligned.m64n" n \
                 "k16.f32." type "." type " {" QWEN3MOE_REGS_##groups "}, " a_operand ", " b_operand       \
                                                                      ", p, 1, 1, 0, 0;}"                  \
                 : QWEN3MOE_ACCS_##groups                                                                  \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
#define QWEN3MOE_WGMMA_ALL(type)                          \
    QWEN3MOE_WGMMA(1, "8", "%4", "%5", "%6", type);       \
    QWEN3MOE_WGMMA(2, "16", "%8", "%9", "%10", type);     \
    QWEN3MOE_WGMMA(3, "24", "%12", "%13", "%14", type);   \
    QWEN3MOE_WGMMA(4, "32", "%16", "%17", "%18", type);   \
    QWEN3MOE_WGMMA(5, "40", "%20", "%21", "%22", type);   \
    QWEN3MOE_WGMMA(6, "48", "%24", "%25", "%26", type);   \
    QWEN3MOE_WGMMA(7, "56", "%28", "%29", "%30", type);   \
    QWEN3MOE_WGMMA(8, "64", "%32", "%33", "%34", type);   \
    QWEN3MOE_WGMMA(9, "72", "%36", "%37", "%38", type);   \
    QWEN3MOE_WGMMA(10, "80", "%40", "%41", "%42", type);  \
    QWEN3MOE_WGMMA(11, "88", "%44", "%45", "%46", type);  \
    QWEN3MOE_WGMMA(12, "96", "%48", "%49", "%50", type);  \
    QWEN3MOE_WGMMA(13, "104", "%52", "%53", "%54", type); \
    QWEN3MOE_WGMMA(14, "112", "%56", "%57", "%58", type); \
    QWEN3MOE_WGMMA(15, "120", "%60", "%61", "%62", type); \
    QWEN3MOE_WGMMA(16, "128", "%64", "%65", "%66", type)

// acc [64 x 8 kGroups] = or += A [64 x 16] @ B [8 kGroups x 16]^T, asynchronously; acc[g] is the fragment of group g.
template <typename T, int kGroups, int kSize>
__device__ __forceinline__ void wgmma_groups(float (&acc)[kSize][4], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kGroups <= kSize && kGroups <= 16);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        QWEN3MOE_WGMMA_ALL("bf16");
    } else {
        QWEN3MOE_WGMMA_ALL("f16");
    }
}

#undef QWEN3MOE_WGMMA_ALL
#undef QWEN3MOE_WGMMA
#undef QWEN3MOE_ACC

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace qwen3moe
