// What a choice of kernels may know of a GPU.
#pragma once

#include <cstdint>

namespace qwen3moe {

struct Device {
    int ordinal;
    int compute_capability;  // major * 10 + minor
    int num_multiprocessors;

    // A kernel's prologue may overlap the tail of the one before (launch.cuh).
    bool has_dependent_launch() const { return compute_capability >= 90; }
};

// The current device. Returns a qwen3moe_status.
int32_t current_device(Device* device);

}  // namespace qwen3moe
