// A rank's membership in its group: the NCCL communicator and, for small sums, the memory shared with its peers.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <string>

#include "nccl_library.h"
#include "peer_memory.h"

namespace qwen3moe {

class Communicator : public std::enable_shared_from_this<Communicator> {
   public:
    explicit Communicator(const qwen3moe_communicator_config& config);  // throws on a configuration that cannot be

    // Joins the group: all ranks meet, agree on the configuration and get a known sum right. Waits for peers without
    // limit, as stop() does; doing() says on what, to any thread.
    void start(const nccl::ncclUniqueId& id);
    void stop();
    const char* doing() const { return doing_; }

    void abort();        // from any thread, at once
    void check() const;  // throws if aborted, or NCCL noticed a failure

    void all_reduce(const void* x, void* out, int64_t count, int32_t dtype, cudaStream_t stream) const;
    void all_reduce_add_rms_norm(const qwen3moe_rms_norm_shape& shape, const qwen3moe_rms_norm_tensors& tensors,
                                 cudaStream_t stream) const;
    void all_gather(const void* x, void* out, int64_t count, int32_t dtype, cudaStream_t stream) const;

    const qwen3moe_communicator_config& config() const { return config_; }
    std::string name() const;  // rank 1 of 2

   private:
    struct Introduction;
    void meet(cudaStream_t stream);
    void expect_same(const Introduction& peer, int32_t rank) const;
    void expect_known_sum(cudaStream_t stream, int64_t count, bool one_shot) const;
    bool goes_in_one_shot(int64_t count, int32_t dtype) const;
    void reduce(const void* x, void* out, int64_t count, int32_t dtype, bool one_shot, cudaStream_t stream) const;

    const qwen3moe_communicator_config config_;
    const nccl::Library& nccl_;
    nccl::ncclComm_t comm_ = nullptr;
    std::unique_ptr<PeerMemory> peers_;  // null if all goes by NCCL
    std::atomic<const char*> doing_ = "";
    std::atomic<bool> aborted_ = false;
};

}  // namespace qwen3moe
