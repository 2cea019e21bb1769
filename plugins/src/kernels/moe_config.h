// Which kernels run a MoE call, with which tiles. Every decision follows from the shape and the GPU; none looks at the
// routing, which the host cannot see without a synchronisation.
#pragma once

#include <algorithm>
#include <ostream>

#include "device.h"
#include "qwen3moe/kernels.h"

namespace qwen3moe::moe {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 16;
constexpr int kMinTileRows = 16;

// Up to this many assignments (token, expert) each one reads its expert's weights itself. At 16 of 128 experts 15 are
// distinct, so little is read twice and sorting is not worth its 8 us; at 32 the grouped path is 4 % faster on an H200.
constexpr int kGemvAssignments = 16;

// Tokens go through the grouped path in chunks of at most this many. At top-8 that is 131072 assignments, 1024 per
// expert of 128: partly filled tiles are then 6 % of the work (12 % at 8192), and scratch memory is 0.75 GB at H 2048.
constexpr int kChunkTokens = 16384;

enum class Path { kGemv, kMma, kWgmma };

struct Config {
    Path path;
    int tile_rows;          // assignments of one expert that a thread block computes; grouped paths only
    int persistent_blocks;  // one per multiprocessor; wgmma path only
    bool dependent_launch;  // a kernel's prologue overlaps the tail of the one before (sm_90 and later)
};

// The smallest tile that holds an expert's tokens under uniform routing in 99 % of cases, so that its weights leave
// memory once: a Poisson mean of 8 stays within 16 in 99.6 %, 20 within 32 in 99.5 %, 48 within 64 in 99 %. The wgmma
// path has tiles of 128 alone, whose halves cost no arithmetic when empty: 2 % faster than mma's 64 at 512 tokens.
inline int choose_tile_rows(int num_assignments, int num_experts, bool wgmma) {
    const int mean = num_assignments / num_experts;
    if (mean <= 8) return 16;
    if (mean <= 20) return 32;
    if (mean <= 48 && !wgmma) return 64;
    return 128;
}

inline int chunk_tokens(const qwen3moe_moe_shape& shape) { return std::min(shape.num_tokens, kChunkTokens); }

inline Config choose_config(const qwen3moe_moe_shape& shape, const Device& device) {
    const int num_assignments = chunk_tokens(shape) * shape.top_k;
    const bool has_wgmma = device.compute_capability == 90;  // on sm_90a alone
    const int tile_rows = choose_tile_rows(num_assignments, shape.num_experts, has_wgmma);
    const Path grouped = has_wgmma && tile_rows == 128 ? Path::kWgmma : Path::kMma;
    return {num_assignments <= kGemvAssignments ? Path::kGemv : grouped, tile_rows, device.num_multiprocessors,
            device.compute_capability >= 90};
}

inline std::ostream& operator<<(std::ostream& os, const Config& config) {
    const char* const names[] = {"gemv", "mma", "wgmma"};
    return os << "MoeConfig(path=" << names[static_cast<int>(config.path)] << ", tile_rows=" << config.tile_rows
              << ", persistent_blocks=" << config.persistent_blocks << ", dependent_launch=" << config.dependent_launch
              << ")";
}

}  // namespace qwen3moe::moe
