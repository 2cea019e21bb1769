// The C API: communicators of a process, and the operators over the one in use.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "communicator.h"

struct qwen3moe_communicator {
    std::shared_ptr<qwen3moe::Communicator> shared;
};

namespace qwen3moe {

namespace {

// Ambient, since TensorRT makes the plugin objects and nothing can be passed to them.
std::atomic<qwen3moe_communicator*> in_use{nullptr};
std::atomic<bool> skipped{false};

// Runs `work` on a thread of its own. Past the communicator's limit the thread is left behind, and holds what it uses.
void within_limit(const std::shared_ptr<Communicator>& communicator, std::function<void()> work) {
    auto task = std::make_shared<std::packaged_task<void()>>(std::move(work));
    std::future<void> done = task->get_future();
    std::thread([task] { (*task)(); }).detach();
    const double limit = communicator->config().timeout_seconds;
    if (done.wait_for(std::chrono::duration<double>(limit)) != std::future_status::ready) {
        throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, "waited " + std::to_string(limit) + " s for " +
                                                       communicator->doing() + ": a peer is missing or hangs");
    }
    done.get();
}

// Failures of a communicator name its rank.
template <typename Body>
int32_t status_naming(const Communicator& communicator, Body&& body) noexcept {
    const int32_t status = status_of(body);
    if (status != QWEN3MOE_SUCCESS) last_error() = communicator.name() + ": " + last_error();
    return status;
}

void expect_argument(bool holds, const char* what) {
    if (!holds) throw Failure(QWEN3MOE_INVALID_ARGUMENT, std::string("expected ") + what);
}

// Runs `body` with the communicator in use; not at all if there is nothing to do.
template <typename Tensors, typename Body>
int32_t run(const char* op, int64_t count, const Tensors* tensors, Body&& body) noexcept {
    const int32_t status = status_of([&] {
        expect_argument(count >= 0, "no negative size");
        if (skipped || count == 0) return;
        expect_argument(tensors->x != nullptr && tensors->out != nullptr, "x and out, not NULL");
        qwen3moe_communicator* communicator = in_use;
        if (communicator == nullptr) {
            throw Failure(QWEN3MOE_COMMUNICATOR_ERROR,
                          "this process has no communicator (qwen3moe_communicator_use was not called)");
        }
        communicator->shared->check();
        body(*communicator->shared);
    });
    if (status == QWEN3MOE_SUCCESS) return status;
    const qwen3moe_communicator* communicator = in_use;
    const std::string who = communicator == nullptr ? "" : communicator->shared->name() + ": ";
    last_error() = std::string(op) + ": " + who + last_error();
    return status;
}

}  // namespace

}  // namespace qwen3moe

using qwen3moe::Communicator;

extern "C" int32_t qwen3moe_nccl_open(const char* path, int32_t* version) {
    return qwen3moe::status_of([&] { *version = qwen3moe::nccl::open_library(path).version(); });
}

extern "C" int32_t qwen3moe_unique_id(uint8_t* id) {
    return qwen3moe::status_of([&] {
        const qwen3moe::nccl::Library& nccl = qwen3moe::nccl::opened_library();
        qwen3moe::nccl::ncclUniqueId unique_id;
        nccl.expect_success(nccl.GetUniqueId(&unique_id), "ncclGetUniqueId");
        std::memcpy(id, &unique_id, sizeof unique_id);
    });
}

extern "C" int32_t qwen3moe_communicator_create(const qwen3moe_communicator_config* config, const uint8_t* id,
                                                qwen3moe_communicator** communicator) {
    std::shared_ptr<Communicator> shared;
    const int32_t status = qwen3moe::status_of([&] { shared = std::make_shared<Communicator>(*config); });
    if (status != QWEN3MOE_SUCCESS) return status;
    return qwen3moe::status_naming(*shared, [&] {
        qwen3moe::nccl::ncclUniqueId unique_id;
        std::memcpy(&unique_id, id, sizeof unique_id);
        qwen3moe::within_limit(shared, [shared, unique_id] { shared->start(unique_id); });
        *communicator = new qwen3moe_communicator{shared};
    });
}

extern "C" int32_t qwen3moe_communicator_destroy(qwen3moe_communicator* communicator) {
    qwen3moe_communicator* expected = communicator;
    qwen3moe::in_use.compare_exchange_strong(expected, nullptr);
    const std::shared_ptr<Communicator> shared = communicator->shared;
    delete communicator;
    return qwen3moe::status_naming(*shared, [&] { qwen3moe::within_limit(shared, [shared] { shared->stop(); }); });
}

extern "C" int32_t qwen3moe_communicator_abort(qwen3moe_communicator* communicator) {
    return qwen3moe::status_naming(*communicator->shared, [&] { communicator->shared->abort(); });
}

extern "C" int32_t qwen3moe_communicator_check(qwen3moe_communicator* communicator) {
    return qwen3moe::status_naming(*communicator->shared, [&] { communicator->shared->check(); });
}

extern "C" int32_t qwen3moe_communicator_use(qwen3moe_communicator* communicator) {
    return qwen3moe::status_of([&] {
        if (communicator != nullptr) communicator->shared->check();
        qwen3moe::in_use = communicator;
    });
}

extern "C" int32_t qwen3moe_collectives_skip(int32_t skip) {
    qwen3moe::skipped = skip != 0;
    return QWEN3MOE_SUCCESS;
}

extern "C" size_t qwen3moe_all_reduce_workspace_size(const qwen3moe_all_reduce_shape*) { return 0; }

extern "C" int32_t qwen3moe_all_reduce(const qwen3moe_all_reduce_shape* shape,
                                       const qwen3moe_all_reduce_tensors* tensors, void*, size_t,
                                       qwen3moe_stream stream) {
    return qwen3moe::run("AllReduce", shape->count, tensors, [&](const Communicator& communicator) {
        communicator.all_reduce(tensors->x, tensors->out, shape->count, shape->dtype, stream);
    });
}

extern "C" size_t qwen3moe_all_reduce_add_rms_norm_workspace_size(const qwen3moe_rms_norm_shape*) { return 0; }

extern "C" int32_t qwen3moe_all_reduce_add_rms_norm(const qwen3moe_rms_norm_shape* shape,
                                                    const qwen3moe_rms_norm_tensors* tensors, void*, size_t,
                                                    qwen3moe_stream stream) {
    const int64_t count = int64_t{shape->num_tokens} * shape->hidden_size;
    return qwen3moe::run("AllReduceAddRMSNorm", count, tensors, [&](const Communicator& communicator) {
        qwen3moe::expect_argument(shape->dtype == QWEN3MOE_BF16 || shape->dtype == QWEN3MOE_FP16, "bf16 or fp16");
        qwen3moe::expect_argument(shape->hidden_size % 8 == 0 && shape->hidden_size <= 16384,
                                  "hidden_size a multiple of 8, at most 16384");
        qwen3moe::expect_argument(
            tensors->residual != nullptr && tensors->weight != nullptr && tensors->residual_out != nullptr,
            "residual, weight and residual_out, not NULL");
        communicator.all_reduce_add_rms_norm(*shape, *tensors, stream);
    });
}

extern "C" size_t qwen3moe_all_gather_workspace_size(const qwen3moe_all_gather_shape*) { return 0; }

extern "C" int32_t qwen3moe_all_gather(const qwen3moe_all_gather_shape* shape,
                                       const qwen3moe_all_gather_tensors* tensors, void*, size_t,
                                       qwen3moe_stream stream) {
    return qwen3moe::run("AllGather", shape->count, tensors, [&](const Communicator& communicator) {
        qwen3moe::expect_argument(shape->world_size == communicator.config().world_size,
                                  "the communicator's world_size");
        communicator.all_gather(tensors->x, tensors->out, shape->count, shape->dtype, stream);
    });
}
