#include "communicator.h"

#include <thread>
#include <vector>

#include "device_scope.h"

namespace qwen3moe {

namespace {

size_t element_size(int32_t dtype) { return dtype == QWEN3MOE_FP32 ? 4 : 2; }

nccl::ncclDataType_t nccl_dtype(int32_t dtype) {
    switch (dtype) {
        case QWEN3MOE_BF16:
            return nccl::ncclBfloat16;
        case QWEN3MOE_FP16:
            return nccl::ncclFloat16;
        case QWEN3MOE_FP32:
            return nccl::ncclFloat32;
    }
    throw Failure(QWEN3MOE_INVALID_ARGUMENT, "dtype: expected a qwen3moe_dtype, got " + std::to_string(dtype));
}

void expect(bool holds, const char* what) {
    if (!holds) throw Failure(QWEN3MOE_INVALID_ARGUMENT, std::string("communicator: expected ") + what);
}

}  // namespace

// What each rank tells the others.
struct Communicator::Introduction {
    qwen3moe_communicator_config config;
    int32_t nccl_version;
    cudaIpcMemHandle_t memory;
};

Communicator::Communicator(const qwen3moe_communicator_config& config)
    : config_(config), nccl_(nccl::opened_library()) {
    expect(config.world_size >= 1 && config.rank >= 0 && config.rank < config.world_size, "0 <= rank < world_size");
    expect(config.timeout_seconds > 0, "timeout_seconds > 0");
    expect(config.one_shot_bytes >= 0, "one_shot_bytes >= 0");
    expect(config.one_shot_bytes == 0 || config.world_size <= QWEN3MOE_MAX_ONE_SHOT_RANKS,
           "one_shot_bytes 0 with more than 8 ranks");
}

std::string Communicator::name() const {
    return "rank " + std::to_string(config_.rank) + " of " + std::to_string(config_.world_size);
}

void Communicator::start(const nccl::ncclUniqueId& id) {
    const DeviceScope device(config_.device);
    doing_ = "ncclCommInitRank";
    nccl_.expect_success(nccl_.CommInitRank(&comm_, config_.world_size, id, config_.rank), "ncclCommInitRank");
    const ScopedStream stream;
    doing_ = "the exchange of configurations";
    meet(stream.get());
    doing_ = "a known sum";
    expect_known_sum(stream.get(), 1 << 18, false);
    if (peers_ == nullptr) return;
    for (const int64_t count : {int64_t{1}, config_.one_shot_bytes / 4}) {
        if (count > 0) expect_known_sum(stream.get(), count, true);
    }
}

void Communicator::meet(cudaStream_t stream) {
    Introduction mine = {};
    mine.config = config_;
    mine.nccl_version = nccl_.version();
    if (config_.one_shot_bytes > 0 && config_.world_size > 1) {
        peers_ = std::make_unique<PeerMemory>(config_.rank, config_.world_size, config_.one_shot_bytes);
        mine.memory = peers_->handle();
    }
    const ScopedMemory all(sizeof mine * config_.world_size);
    auto* own_place = static_cast<Introduction*>(all.get()) + config_.rank;
    expect_success(cudaMemcpyAsync(own_place, &mine, sizeof mine, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    nccl_.expect_success(nccl_.AllGather(own_place, all.get(), sizeof mine, nccl::ncclInt8, comm_, stream),
                         "ncclAllGather", comm_);
    std::vector<Introduction> introductions(config_.world_size);
    const size_t num_bytes = sizeof mine * introductions.size();
    expect_success(cudaMemcpyAsync(introductions.data(), all.get(), num_bytes, cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
    expect_success(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    std::vector<cudaIpcMemHandle_t> handles;
    for (int32_t rank = 0; rank < config_.world_size; ++rank) {
        expect_same(introductions[rank], rank);
        handles.push_back(introductions[rank].memory);
    }
    if (peers_ != nullptr) peers_->open(handles);
}

void Communicator::expect_same(const Introduction& peer, int32_t rank) const {
    const auto compare = [&](const char* what, auto own, auto other) {
        if (own == other) return;
        throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, std::string(what) + ": " + std::to_string(own) + ", but " +
                                                       std::to_string(other) + " on rank " + std::to_string(rank));
    };
    compare("one_shot_bytes", config_.one_shot_bytes, peer.config.one_shot_bytes);
    compare("NCCL version", nccl_.version(), peer.nccl_version);
}

// x[i] = (rank + 1) * (i % 8 + 1) in fp32: sums up to 8 * world_size^2 are exact, and no rank's part can be another's.
void Communicator::expect_known_sum(cudaStream_t stream, int64_t count, bool one_shot) const {
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((config_.rank + 1) * (i % 8 + 1));
    const size_t num_bytes = count * sizeof(float);
    const ScopedMemory memory(num_bytes);
    expect_success(cudaMemcpyAsync(memory.get(), values.data(), num_bytes, cudaMemcpyHostToDevice, stream),
                   "cudaMemcpyAsync");
    reduce(memory.get(), memory.get(), count, QWEN3MOE_FP32, one_shot, stream);
    expect_success(cudaMemcpyAsync(values.data(), memory.get(), num_bytes, cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
    expect_success(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    const int32_t sum_of_ranks = config_.world_size * (config_.world_size + 1) / 2;
    for (int64_t i = 0; i < count; ++i) {
        const auto expected = static_cast<float>(sum_of_ranks * (i % 8 + 1));
        if (values[i] == expected) continue;
        throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, std::string(one_shot ? "one-shot" : "NCCL") +
                                                       " known sum: element " + std::to_string(i) + ": expected " +
                                                       std::to_string(expected) + ", got " + std::to_string(values[i]));
    }
}

void Communicator::stop() {
    const DeviceScope device(config_.device);
    if (aborted_) return;  // what hangs cannot be freed: the process ends
    doing_ = "the end of the GPU's work";
    expect_success(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (peers_ != nullptr) {
        peers_->close();
        doing_ = "the peers to let go of the memory";
        const ScopedStream stream;
        expect_known_sum(stream.get(), 1, false);
        peers_.reset();
    }
    doing_ = "ncclCommDestroy";
    nccl_.expect_success(nccl_.CommDestroy(comm_), "ncclCommDestroy");
}

// ncclCommAbort ends NCCL's kernels first and returns when no captured graph holds the communicator any more, so it
// gets a thread of its own, which holds this object.
void Communicator::abort() {
    if (aborted_.exchange(true)) return;
    if (peers_ != nullptr) peers_->abort();
    std::thread([self = shared_from_this()] {
        cudaSetDevice(self->config_.device);
        self->nccl_.CommAbort(self->comm_);
    }).detach();
}

void Communicator::check() const {
    if (aborted_) throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, "aborted");
    nccl::ncclResult_t error = nccl::ncclSuccess;
    nccl_.expect_success(nccl_.CommGetAsyncError(comm_, &error), "ncclCommGetAsyncError", comm_);
    if (error != nccl::ncclInProgress) nccl_.expect_success(error, "NCCL", comm_);
}

void Communicator::all_reduce(const void* x, void* out, int64_t count, int32_t dtype, cudaStream_t stream) const {
    reduce(x, out, count, dtype, goes_in_one_shot(count, dtype), stream);
}

bool Communicator::goes_in_one_shot(int64_t count, int32_t dtype) const {
    return peers_ != nullptr && count * static_cast<int64_t>(element_size(dtype)) <= config_.one_shot_bytes;
}

void Communicator::all_reduce_add_rms_norm(const qwen3moe_rms_norm_shape& shape,
                                           const qwen3moe_rms_norm_tensors& tensors, cudaStream_t stream) const {
    const int64_t count = int64_t{shape.num_tokens} * shape.hidden_size;
    if (goes_in_one_shot(count, shape.dtype)) {
        const OneShotNorm norm = {
            tensors.x,        tensors.residual,  tensors.weight, tensors.out, tensors.residual_out,
            shape.num_tokens, shape.hidden_size, shape.eps};
        expect_success(
            one_shot_all_reduce_add_rms_norm(peers_->group(), norm, static_cast<qwen3moe_dtype>(shape.dtype), stream),
            "one-shot all-reduce and norm");
        return;
    }
    reduce(tensors.x, tensors.residual_out, count, shape.dtype, false, stream);
    qwen3moe_rms_norm_tensors summed = tensors;
    summed.x = tensors.residual_out;
    const int32_t status = qwen3moe_rms_norm(&shape, &summed, nullptr, 0, stream);
    if (status != QWEN3MOE_SUCCESS) throw Failure(static_cast<qwen3moe_status>(status), last_error());
}

void Communicator::reduce(const void* x, void* out, int64_t count, int32_t dtype, bool one_shot,
                          cudaStream_t stream) const {
    const nccl::ncclDataType_t type = nccl_dtype(dtype);
    if (one_shot) {
        expect_success(one_shot_all_reduce(peers_->group(), x, out, count, static_cast<qwen3moe_dtype>(dtype), stream),
                       "one-shot all-reduce");
        return;
    }
    nccl_.expect_success(nccl_.AllReduce(x, out, count, type, nccl::ncclSum, comm_, stream), "ncclAllReduce", comm_);
}

void Communicator::all_gather(const void* x, void* out, int64_t count, int32_t dtype, cudaStream_t stream) const {
    nccl_.expect_success(nccl_.AllGather(x, out, count, nccl_dtype(dtype), comm_, stream), "ncclAllGather", comm_);
}

}  // namespace qwen3moe
