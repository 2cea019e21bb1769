// From fp32 accumulators to memory, for the mma path. A fragment is 16 rows by 8 * kFrags columns in mma.m16n8 order
// (see mma.cuh).
#pragma once

#include "mma.cuh"
#include "moe_swiglu.cuh"
#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

// Two neighbouring lanes of a row trade halves of two fragments: the even one gets four consecutive columns of `first`,
// the odd one of `second`. Stores then fill whole 32-byte sectors, with half the instructions.
__device__ __forceinline__ uint2 join_columns(uint32_t first, uint32_t second) {
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t received = __shfl_xor_sync(~0u, odd ? first : second, 1);
    return odd ? make_uint2(received, second) : make_uint2(first, received);
}

template <typename T>
__device__ __forceinline__ uint32_t activate(const float (&gate)[4], const float (&up)[4], int half) {
    return pack2<T>(swiglu(gate[half * 2], up[half * 2]), swiglu(gate[half * 2 + 1], up[half * 2 + 1]));
}

// row: of the tile, of the fragment's first row. col: of the outputs, of the fragment's first column.
template <Product kProduct, int kFrags, typename T>
__device__ __forceinline__ void store_rows(const Params<T>& p, const Tile& tile, int row, int col,
                                           const float (&acc)[kFrags][4]) {
    const int lane = threadIdx.x % 32;
    const int lane_col = col + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int tile_row = row + lane / 4 + half * 8;
        const bool inside = tile_row < tile.num_rows;
        const int sorted_row = tile.first_row + (inside ? tile_row : 0);
        if constexpr (kProduct == Product::kGateUp) {
            T* out = p.activation + static_cast<size_t>(sorted_row) * p.intermediate_size;
#pragma unroll
            for (int f = 0; f < kFrags; f += 4) {
                const uint2 columns =
                    join_columns(activate<T>(acc[f], acc[f + 1], half), activate<T>(acc[f + 2], acc[f + 3], half));
                const int c = lane_col + f * 4;
                if (inside && c < p.intermediate_size) *reinterpret_cast<uint2*>(out + c) = columns;
            }
        } else {
            T* out = p.expert_out + static_cast<size_t>(p.row_assignment[sorted_row]) * p.hidden_size;
#pragma unroll
            for (int f = 0; f < kFrags; f += 2) {
                const uint2 columns = join_columns(pack2<T>(acc[f][half * 2], acc[f][half * 2 + 1]),
                                                   pack2<T>(acc[f + 1][half * 2], acc[f + 1][half * 2 + 1]));
                const int c = lane_col + f * 8;
                if (inside && c < p.hidden_size) *reinterpret_cast<uint2*>(out + c) = columns;
            }
        }
    }
}

}  // namespace qwen3moe::moe
