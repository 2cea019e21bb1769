// How kernels report failure: a status code, and a message kept for the calling thread.
// No exception leaves the library; a check names the file, the line, the condition and both values.
#pragma once

#include <cuda_runtime_api.h>

#include <sstream>
#include <string>

#include "qwen3moe/kernels.h"

namespace qwen3moe {

std::string& last_error();  // of the calling thread

inline int32_t fail(qwen3moe_status status, const std::string& message) {
    last_error() = message;
    return status;
}

}  // namespace qwen3moe

// Returns INVALID_ARGUMENT from the enclosing function unless `left op right`.
#define QWEN3MOE_CHECK_ARG(left, op, right)                                                                     \
    do {                                                                                                        \
        if (!((left)op(right))) {                                                                               \
            std::ostringstream message;                                                                         \
            message << __FILE__ << ":" << __LINE__ << ": expected " #left " " #op " " #right ", got " << (left) \
                    << " and " << (right);                                                                      \
            return ::qwen3moe::fail(QWEN3MOE_INVALID_ARGUMENT, message.str());                                  \
        }                                                                                                       \
    } while (0)

// Returns CUDA_ERROR from the enclosing function unless `call` is cudaSuccess.
#define QWEN3MOE_CHECK_CUDA(call)                                                                        \
    do {                                                                                                 \
        const cudaError_t error = (call);                                                                \
        if (error != cudaSuccess) {                                                                      \
            std::ostringstream message;                                                                  \
            message << __FILE__ << ":" << __LINE__ << ": " #call ": " << cudaGetErrorName(error) << " (" \
                    << static_cast<int>(error) << "): " << cudaGetErrorString(error);                    \
            return ::qwen3moe::fail(QWEN3MOE_CUDA_ERROR, message.str());                                 \
        }                                                                                                \
    } while (0)
