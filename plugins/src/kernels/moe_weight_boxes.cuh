// The expert weights as the copy engine brings them to shared memory: boxes of 128 rows of one expert by a slice of K.
#pragma once

#include "moe_tile_loader.cuh"
#include "tma.cuh"

namespace qwen3moe::moe {

constexpr int kBoxRows = 128;
constexpr int kBoxBytes = kBoxRows * kRowBytes;

// Both products have axes (K, 8 rows, gate or up, groups of 8 output features, slot): gate_up's box is 8 gate rows,
// then the 8 up rows of the same features, and so on, which puts both into the same lanes of a warp. Rows past the last
// and elements past the end of K come as zeros.
template <Product kProduct, typename T>
cudaError_t describe_weights(CUtensorMap* map, const Params<T>& p) {
    constexpr bool kPairs = kProduct == Product::kGateUp;
    const cuuint64_t k = kPairs ? p.hidden_size : p.intermediate_size;
    const cuuint64_t features = kPairs ? p.intermediate_size : p.hidden_size;
    const cuuint64_t row = k * sizeof(T), matrix = features * row;
    const cuuint64_t kinds = kPairs ? 2 : 1;
    const cuuint64_t sizes[] = {k, 8, kinds, features / 8, static_cast<cuuint64_t>(p.num_local_experts)};
    const cuuint64_t strides[] = {row, matrix, 8 * row, kinds * matrix};
    const cuuint32_t box[] = {kSlice, 8, static_cast<cuuint32_t>(kinds), static_cast<cuuint32_t>(kBoxRows / 8 / kinds),
                              1};
    return describe_tensor<5>(map, kPairs ? p.gate_up : p.down, sizes, strides, box);
}

}  // namespace qwen3moe::moe
