// How the collectives report failure. Inside, a check throws; at the edge, every function of the C API runs in
// `status_of`, which turns the exception into a status and the calling thread's message.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "../kernels/status.h"

namespace qwen3moe {

class Failure : public std::runtime_error {
   public:
    Failure(qwen3moe_status status, const std::string& message) : std::runtime_error(message), status(status) {}
    const qwen3moe_status status;
};

inline void expect_success(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    throw Failure(QWEN3MOE_CUDA_ERROR,
                  std::string(call) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

template <typename Body>
int32_t status_of(Body&& body) noexcept {
    try {
        body();
        return QWEN3MOE_SUCCESS;
    } catch (const Failure& failure) {
        return fail(failure.status, failure.what());
    } catch (const std::exception& error) {
        return fail(QWEN3MOE_COMMUNICATOR_ERROR, error.what());
    }
}

}  // namespace qwen3moe
