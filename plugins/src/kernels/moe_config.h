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

// Of the wgmma path, whose blocks take half a tile each.
constexpr int kManyTileRows = 256;
constexpr int kFewTileRows = 144;  // holds 92 % of experts of 128 tokens: 420 us at 2048 tokens, with 256 rows 433

// Up to this many assignments (token, expert) each one reads its expert's weights itself. At 16 of 128 experts 15 are
// distinct, so little is read twice and sorting is not worth its 8 us; at 32 the grouped path is 4 % faster on an H200.
constexpr int kGemvAssignments = 16;

// The grouped path takes at most this many assignments at a time, 16384 tokens at top-8 and 1024 an expert of 128;
// scratch memory is then 0.75 GB at H 2048.
constexpr int kChunkAssignments = 131072;

enum class Path { kGemv, kMma, kWgmma };

struct Config {
    Path path;
    int tile_rows;          // assignments of one expert that a thread block, on the wgmma path a cluster, computes
    int persistent_blocks;  // one per multiprocessor; wgmma path only
    bool dependent_launch;  // a kernel's prologue overlaps the tail of the one before (sm_90 and later)
};

// The smallest tile that holds an expert's tokens under uniform routing in 99 % of cases, so that its weights leave
// memory once: a Poisson mean of 8 stays within 16 in 99.6 %, 20 within 32 in 99.5 %, 48 within 64 in 99 %. On
// an H200 wgmma is as fast as mma at 512 tokens, 334 and 332 us, and faster where few experts have most of them, 363
// and 398; at 256 tokens it is 3 % slower.
inline int choose_tile_rows(int num_assignments, int num_experts, bool wgmma) {
    const int mean = num_assignments / num_experts;
    if (mean <= 8) return 16;
    if (mean <= 20) return 32;
    if (wgmma) return mean <= 128 ? kFewTileRows : kManyTileRows;
    return mean <= 48 ? 64 : 128;
}

inline int chunk_tokens(const qwen3moe_moe_shape& shape) {
    return std::min(shape.num_tokens, kChunkAssignments / shape.top_k);
}

inline Config choose_config(const qwen3moe_moe_shape& shape, const Device& device) {
    const int num_assignments = chunk_tokens(shape) * shape.top_k;
    const bool has_wgmma = device.compute_capability == 90;  // on sm_90a alone
    const int tile_rows = choose_tile_rows(num_assignments, shape.num_experts, has_wgmma);
    const Path grouped = tile_rows > 128 ? Path::kWgmma : Path::kMma;
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
