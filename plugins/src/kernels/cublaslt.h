// The part of cuBLASLt that is used, declared here and looked up at run time: pip's toolkit has no headers of it, and a
// process that multiplies few tokens only does without the 700 MB library. The same in cuBLAS 12 and 13.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace qwen3moe::cublaslt {

using Handle = struct Context*;
using MatmulDesc = struct MatmulDescOpaque*;
using Layout = struct LayoutOpaque*;
using Preference = struct PreferenceOpaque*;

struct Algorithm {
    uint64_t data[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace_size;
    int status;
    float waves;
    int reserved[4];
};

constexpr int kSuccess = 0;
constexpr int kComputeFloat32 = 68;                    // CUBLAS_COMPUTE_32F
constexpr int32_t kTranspose = 1;                      // CUBLAS_OP_T
constexpr int kDescTransA = 3;                         // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kPreferenceWorkspace = 1;                // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr int kPreferenceAlignments[] = {5, 6, 7, 8};  // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{A,B,C,D}_BYTES

struct Functions {
    int (*create)(Handle*);
    int (*desc_create)(MatmulDesc*, int compute_type, int scale_type);
    int (*desc_set)(MatmulDesc, int attribute, const void* value, size_t size);
    int (*desc_destroy)(MatmulDesc);
    int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t cols, int64_t leading_dimension);
    int (*layout_destroy)(Layout);
    int (*preference_create)(Preference*);
    int (*preference_set)(Preference, int attribute, const void* value, size_t size);
    int (*preference_destroy)(Preference);
    int (*heuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference, int requested, Heuristic*,
                     int* returned);
    int (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                  const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t workspace_size,
                  cudaStream_t);
};

// The loaded library's functions, or null if the process finds none (then `last_error` says where it looked).
const Functions* functions();

}  // namespace qwen3moe::cublaslt
