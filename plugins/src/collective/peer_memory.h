// The memory that the ranks of a group write into each other's GPU: this rank's own, and the others' as mapped here.
#pragma once

#include <vector>

#include "one_shot.h"

namespace qwen3moe {

// Of the current device. `rank` gives out handle(), all ranks' are exchanged, then each calls open().
class PeerMemory {
   public:
    PeerMemory(int32_t rank, int32_t world_size, int64_t max_message_bytes);
    ~PeerMemory();
    PeerMemory(const PeerMemory&) = delete;
    PeerMemory& operator=(const PeerMemory&) = delete;

    cudaIpcMemHandle_t handle() const;
    void open(const std::vector<cudaIpcMemHandle_t>& handles);  // by rank
    // Unmaps the others' memory. No rank may free its own, which the destructor does, before all have done this.
    void close();
    void abort() { *aborted_ = 1; }  // from any thread

    const OneShotGroup& group() const { return group_; }

   private:
    OneShotGroup group_ = {};
    int32_t* aborted_ = nullptr;  // group_.aborted as the host sees it
};

}  // namespace qwen3moe
