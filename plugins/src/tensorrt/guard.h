// The one guard at the edge to TensorRT. Inside, a check throws; at the edge, every noexcept method runs in `guarded`,
// which prints what was wrong to stderr and returns the method's failure value. TensorRT's logger is left alone: its
// vtable differs between TensorRT 10 and 11.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>

namespace qwen3moe {

template <typename Result, typename Body>
Result guarded(const char* op, const char* method, Result failure, Body&& body) noexcept {
    try {
        return body();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "qwen3moe: %s: %s: %s\n", op, method, error.what());
    } catch (...) {
        std::fprintf(stderr, "qwen3moe: %s: %s: unknown exception\n", op, method);
    }
    return failure;
}

}  // namespace qwen3moe

// Throws unless `left op right`, naming the place, `what` (streamed: a << b) and both values.
#define QWEN3MOE_EXPECT(left, op, right, what)                                                                        \
    do {                                                                                                              \
        const auto left_value = (left);                                                                               \
        const auto right_value = (right);                                                                             \
        if (!(left_value op right_value)) {                                                                           \
            std::ostringstream message;                                                                               \
            message << __FILE__ << ":" << __LINE__ << ": " << what << ": expected " #left " " #op " " #right ", got " \
                    << left_value << " and " << right_value;                                                          \
            throw std::invalid_argument(message.str());                                                               \
        }                                                                                                             \
    } while (0)
