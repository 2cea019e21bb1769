// Which kernel multiplies by a weight matrix. Every decision follows from the shape and the GPU.
#pragma once

#include <algorithm>
#include <ostream>

#include "device.h"
#include "qwen3moe/kernels.h"

namespace qwen3moe::linear {

constexpr int kElements = 8;    // of 16 bits in one 16-byte load: what K is a multiple of on the gemv path
constexpr int kRows = 16;       // outputs of a gemv block: the M of mma.m16n8k16
constexpr int kTileTokens = 8;  // the N of mma.m16n8k16

// Up to this many tokens the weight's bytes are all that counts, and one pass of our own beats cuBLASLt.
constexpr int kMaxGemvTokens = 16;

// A warp has 256 elements of 16 rows in flight, 8 KB: 8 warps and two blocks on an SM make 128 KB, where 4.8 TB/s * 0.8
// us / 132 SMs = 29 KB would do. 16 warps where K has work for them, so that few blocks (128 for 2048 outputs) do too.
constexpr int kChunk = 256;
constexpr int kMaxWarps = 16;

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
    const bool is_gemv = shape.num_tokens <= kMaxGemvTokens && shape.in_features % kElements == 0;
    return is_gemv ? Path::kGemv : Path::kCublas;
}

inline Config choose_config(const qwen3moe_linear_shape& shape, const Device& device) {
    const int chunks = (shape.in_features + kChunk - 1) / kChunk;
    return {choose_path(shape), (shape.num_tokens + kTileTokens - 1) / kTileTokens, std::min(chunks, kMaxWarps),
            device.has_dependent_launch()};
}

inline std::ostream& operator<<(std::ostream& os, const Config& config) {
    return os << "LinearConfig(path=" << (config.path == Path::kGemv ? "gemv" : "cublas")
              << ", token_tiles=" << config.token_tiles << ", warps=" << config.warps
              << ", dependent_launch=" << config.dependent_launch << ")";
}

}  // namespace qwen3moe::linear
