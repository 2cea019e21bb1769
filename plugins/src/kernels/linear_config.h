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

// A warp has 8 steps of 32 elements of 16 rows in flight, 8 KB; a block of 16 warps 128 KB, where 4.8 TB/s * 0.8 us /
// 132 SMs = 29 KB would do. K in whole chunks keeps a warp's lanes together.
constexpr int kSteps = 8;
constexpr int kStep = 4 * kElements;
constexpr int kChunk = kSteps * kStep;
constexpr int kMaxWarps = 16;

// Our own kernel takes few tokens and so few outputs that blocks are at most as many as an H200's SMs: 3 us for 128
// outputs and 7.5 for 2048 (K 4096), where cuBLASLt takes 5.3 and 9. At 5120 outputs they are even, and at 151936 it is
// cuBLASLt that reads at memory speed at 2 to 16 tokens.
constexpr int kMaxGemvTokens = 16;
constexpr int kMaxGemvOutputs = 132 * kRows;

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
    const bool is_gemv = shape.num_tokens <= kMaxGemvTokens && shape.out_features <= kMaxGemvOutputs &&
                         shape.out_features % kRows == 0 && shape.in_features % kChunk == 0;
    return is_gemv ? Path::kGemv : Path::kCublas;
}

inline Config choose_config(const qwen3moe_linear_shape& shape, const Device& device) {
    return {choose_path(shape), (shape.num_tokens + kTileTokens - 1) / kTileTokens,
            std::min(shape.in_features / kChunk, kMaxWarps), device.has_dependent_launch()};
}

inline std::ostream& operator<<(std::ostream& os, const Config& config) {
    return os << "LinearConfig(path=" << (config.path == Path::kGemv ? "gemv" : "cublas")
              << ", token_tiles=" << config.token_tiles << ", warps=" << config.warps
              << ", dependent_launch=" << config.dependent_launch << ")";
}

}  // namespace qwen3moe::linear
