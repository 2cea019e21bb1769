// Blocks of a cluster (sm_90) that fill each other's shared memory.
#pragma once

#include "cluster.cuh"
#include "hopper.cuh"
#include "tma.cuh"

namespace qwen3moe {

// As copy_box, of a tensor of five axes, innermost first, into all blocks of `mask` at once: each gets the box at the
// address that `shared` has here, and its own barrier counts the bytes.
__device__ __forceinline__ void copy_box_to_blocks(void* shared, const CUtensorMap* map, const int (&at)[5],
                                                   uint64_t* barrier, int mask) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(shared_address(shared)),
        "l"(map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(shared_address(barrier)),
        "h"(static_cast<uint16_t>(mask))
        : "memory");
}

}  // namespace qwen3moe
