// What the kernels of one MoE call share: sizes, tensors and the layout of the scratch memory.
//
// Legend: T tokens of the chunk, k top_k, N = T * k assignments (assignment a is choice a % k of token a / k),
// E experts, E_local slots, R rows of expert_map, H hidden_size, I intermediate_size. Rows are assignments
// sorted by expert.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe_config.h"

namespace qwen3moe::moe {

// Rows [first_row, first_row + num_rows) multiply the weights in `slot`. No rows: nothing to do.
struct alignas(16) Tile {
    int slot;
    int first_row;
    int num_rows;
};

constexpr int16_t kNotHeld = INT16_MAX;  // in topk_expert: behind every expert, so sorting drops it

template <typename T>
struct Params {
    int num_tokens;
    int hidden_size;
    int intermediate_size;
    int num_experts;
    int num_local_experts;
    int top_k;
    bool norm_topk_prob;
    int tile_rows;
    int num_tiles;
    int map_rows;     // R, 0 or 1: expert_map is [E]
    int first_token;  // of the chunk among the call's

    const T* hidden;         // [T, H]
    const T* router_logits;  // [T, E]
    const T* gate_up;        // [E_local, 2 I, H]
    const T* down;           // [E_local, H, I]
    const int* expert_map;   // [R, E]
    const int* positions;    // [T], if R > 1
    const int* tokens_end;   // [1]: how many of the call's tokens are no padding
    int* load;               // [E], null: nothing is counted
    T* out;                  // [T, H]

    float* topk_weight;    // [T, k], 0: not held
    int* topk_slot;        // [T, k], -1: not held
    int16_t* topk_expert;  // [T, k], kNotHeld: not held
    int* row_assignment;   // [N]
    Tile* tiles;           // [num_tiles]
    int* counters;         // [2], of each product: pieces dealt out; wgmma path
    T* activation;         // [N, I]: by assignment in the gemv path, by row in the grouped paths
    T* expert_out;         // [N, H], by assignment, rounded as torch rounds an expert's output
};

// Every expert may leave one tile partly filled.
inline int max_tiles(int num_assignments, int tile_rows, int num_experts) {
    return num_assignments / tile_rows + num_experts;
}

// Byte offsets of the scratch arrays; the same for every path, so that the size depends on the shape alone.
struct WorkspaceLayout {
    explicit WorkspaceLayout(const qwen3moe_moe_shape& shape) {
        const size_t n = static_cast<size_t>(chunk_tokens(shape)) * shape.top_k;
        const size_t num_tiles = max_tiles(static_cast<int>(n), kMinTileRows, shape.num_experts);
        topk_weight = take(n * sizeof(float));
        topk_slot = take(n * sizeof(int));
        topk_expert = take(n * sizeof(int16_t));
        row_assignment = take(n * sizeof(int));
        tiles = take(num_tiles * sizeof(Tile));
        counters = take(2 * sizeof(int));
        activation = take(n * shape.intermediate_size * 2);
        expert_out = take(n * shape.hidden_size * 2);
    }

    size_t topk_weight, topk_slot, topk_expert, row_assignment, tiles, counters, activation, expert_out;
    size_t size = 0;

   private:
    size_t take(size_t bytes) {
        const size_t offset = size;
        size += (bytes + 255) / 256 * 256;
        return offset;
    }
};

}  // namespace qwen3moe::moe
