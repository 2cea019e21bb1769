// The bulk tensor copy engine (sm_90): boxes of a tensor in global memory into shared memory, as wgmma reads them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "mma.cuh"

namespace qwen3moe {

constexpr int kTmaBytes = 128;  // of a row of a box: the widest that 16-byte chunks are permuted within

// Describes a tensor of 16-bit elements to the engine, innermost axis first; strides in bytes, of all axes but that. It
// copies boxes whose rows, of kTmaBytes, lie one behind the other; chunk c of row r lands at position c ^ (r % 8), and
// what is past the tensor's end is zero. The driver's function is looked up, as linking it would make the library need
// a driver to load.
template <int kRank>
cudaError_t describe_tensor(CUtensorMap* map, const void* data, const cuuint64_t (&sizes)[kRank],
                            const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank]) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) return error;
    if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    cuuint32_t steps[kRank];
    for (cuuint32_t& step : steps) step = 1;
    const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    const CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(data), sizes, strides,
                                   box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A row-major matrix, in boxes of `box_rows` rows.
inline cudaError_t describe_matrix(CUtensorMap* map, const void* data, int64_t rows, int cols, int box_rows) {
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
    const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(cols) * 2};
    const cuuint32_t box[] = {kTmaBytes / 2, static_cast<cuuint32_t>(box_rows)};
    return describe_tensor<2>(map, data, sizes, row_bytes, box);
}

// Starts the copy of a matrix's box at (row, col) into the memory of all blocks of the cluster that `ranks` has a bit
// for, at the same place in each; each one's `barrier` counts the bytes. By one thread.
__device__ __forceinline__ void copy_box(uint16_t ranks, void* shared, const CUtensorMap* map, int32_t row, int32_t col,
                                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
        "l"(map), "r"(col), "r"(row), "r"(shared_address(barrier)), "h"(ranks)
        : "memory");
}

// The same of a tensor of five axes; `at`: innermost first.
__device__ __forceinline__ void copy_box(uint16_t ranks, void* shared, const CUtensorMap* map, const int (&at)[5],
                                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(shared_address(shared)),
        "l"(map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(shared_address(barrier)), "h"(ranks)
        : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace qwen3moe
