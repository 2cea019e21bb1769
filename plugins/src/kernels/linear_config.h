// Which kernel multiplies by a weight matrix. Every decision follows from the shape and the GPU.
#pragma once

#include <algorithm>
#include <ostream>

#include "device.h"
#include "qwen3moe/kernels.h"

namespace qwen3moe::linear {

constexpr int kElements = 8;    // of 16 bits in one 16-byte load: what K and N are multiples of
constexpr int kRows = 16;       // outputs of a gemv block: the M of mma.m16n8k16
constexpr int kTileTokens = 8;  // the N of mma.m16n8k16

// A warp's part of K goes by in chunks of 128 elements of 16 rows, 4 KB, two at a time: 8 warps have 64 KB in flight,
// where 4.8 TB/s * 0.8 us / 132 SMs = 29 KB would do. 16 warps where K has work for them, so that few blocks (128 for
// 2048 outputs) do too, and where a block may have 128 KB: sm_86, 89 and 120 have 99.
constexpr int kChunk = 128;
constexpr int kStages = 2;
constexpr int kWarpBytes = kStages * kRows * kChunk * 2;
constexpr int kMaxWarps = 16;
constexpr int kMaxWarpsOfSmallShared = 8;

// Our own kernel takes few tokens, and weights that an H200's shared memory holds at once, 26 MB: those are on their
// way before x is there. In a graph of its own one of 5120 x 2048 takes as long as cuBLASLt's, which in a chain waits
// for the kernel ahead to end; at 151936 outputs it is cuBLASLt that reads at memory speed at 2 to 16 tokens.
constexpr int kMaxGemvTokens = 16;
constexpr int64_t kMaxGemvWeightBytes = int64_t{132} * 3 * 8 * kWarpBytes;

// cuBLASLt's products get this much scratch memory: what NVIDIA recommends for Hopper.
constexpr size_t kCublasWorkspace = size_t{32} << 20;

enum class Path { kGemv, kCublas };

struct Config {
    Path path;
    int token_tiles;        // of 8 tokens; gemv path only
    int warps;              // that share K in a block; gemv path only
    bool dependent_launch;  // the weight's first loads overlap the tail of the kernel before; gemv path only
};

inline Path choose_path(const qwen3moe_linear_shape& shape) {
    const int64_t weight_bytes = int64_t{shape.in_features} * shape.out_features * 2;
    const bool is_gemv =
        shape.num_tokens <= kMaxGemvTokens && weight_bytes <= kMaxGemvWeightBytes && shape.in_features % kElements == 0;
    return is_gemv ? Path::kGemv : Path::kCublas;
}

inline Config choose_config(const qwen3moe_linear_shape& shape, const Device& device) {
    const int shares = (shape.in_features + kStages * kChunk - 1) / (kStages * kChunk);
    const bool has_large_shared = device.compute_capability == 90 || device.compute_capability == 100;
    return {choose_path(shape), (shape.num_tokens + kTileTokens - 1) / kTileTokens,
            std::min(shares, has_large_shared ? kMaxWarps : kMaxWarpsOfSmallShared), device.has_dependent_launch()};
}

inline std::ostream& operator<<(std::ostream& os, const Config& config) {
    return os << "LinearConfig(path=" << (config.path == Path::kGemv ? "gemv" : "cublas")
              << ", token_tiles=" << config.token_tiles << ", warps=" << config.warps
              << ", dependent_launch=" << config.dependent_launch << ")";
}

}  // namespace qwen3moe::linear
