// Batch sampling: one token a row of logits.
//
// The rule is exact, fp32 operations rounded one by one and integers, so that a few lines of numpy give the same token
// (tests/plugins/test_sample.py has them) in whatever order the device adds. For a row l[0..V) of logits:
//
//   1. A NaN counts as -inf. The greedy token has the largest logit, M, and the lowest index among equals. Let
//      c = log2(e) / temperature. The greedy token is drawn if temperature is not above 0, or c or M is not finite.
//   2. The order of the tokens: descending logit, then ascending index.
//   3. top_k: the first top_k tokens in that order are kept; 0, or V and above, keeps all.
//   4. t = (l - M) * c; e = 2^t as sample_math.cuh adds it up, 1 at the maximum; w = floor(2^40 e), a whole number, but
//      0 where t < -40. min_p: w = 0 where e < min_p.
//   5. top_p below 1: Z = sum of w over the tokens kept. Those stay that make up the shortest beginning of the order
//      whose sum of w is at least top_p * Z (a product of doubles, rounded up); at least one token.
//   6. u = the first two 32-bit words, low word first, of Philox4x32-10 with key `seed` and counter `offset` (64 bits
//      each, low word first; the counter's upper half is 0). With Z the sum of w over the tokens kept now and
//      r = floor(u Z / 2^64), the token is the first by index whose running sum of w is above r.
//
// Few rows have several blocks each, which meet at barriers in device memory: one block alone reads a row of 151936
// logits at a few percent of the GPU's bandwidth. Legend: V vocab_size.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "qwen3moe/kernels.h"
#include "sample_search.cuh"
#include "status.h"

namespace qwen3moe::sample {

namespace {

constexpr int kLogitsPerBlock = 4096;  // at least, where a row has several blocks

// Draws by the masses, in the order of indices; the warp whose piece holds the token writes it.
__device__ void draw(const Piece& piece, const Mass& mass, u64 random, RowGroup& group, Shared& shared,
                     int32_t* token) {
    u64 own = 0, before = 0, blocks_before = 0;
    piece.for_each([&](u64 place) { own += mass(place); });
    u64 total = block_exclusive_sum(shared, own, &before);
    if (!group.alone()) total = group.exchange_sum(total, &blocks_before);
    const u64 drawn = __umul64hi(random, total);
    const u64 begin = __shfl_sync(~0u, before, 0) + blocks_before;
    const u64 end = __shfl_sync(~0u, before + own, 31) + blocks_before;
    if (drawn < begin || drawn >= end) return;
    const int index = piece.find(mass, drawn - begin);
    if (threadIdx.x % 32 == 0) *token = index;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(Args args) {
    __shared__ Shared shared;
    const int row = blockIdx.y;
    const qwen3moe_sample_tensors& in = args.tensors;
    const Piece piece(args);
    RowGroup group(args);
    const u64 greatest = find_greatest(piece, group, shared);
    const float max_logit = logit_of_key(greatest >> kIndexBits);
    const float temperature = in.temperature[row];
    const float scale = __fdiv_rn(kLog2E, temperature);
    if (!(temperature > 0.0f) || !isfinite(scale) || !isfinite(max_logit)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) in.token[row] = index_of_place(greatest);
        return;
    }
    Mass mass = {false, max_logit, scale, in.min_p[row], 0};
    const int top_k = in.top_k[row];
    if (top_k > 0 && top_k < args.vocab_size) mass.boundary = find_boundary(piece, mass, 1.0f, top_k, group, shared);
    mass.weighted = true;
    if (in.top_p[row] < 1.0f) mass.boundary = find_boundary(piece, mass, in.top_p[row], 0, group, shared);
    draw(piece, mass, philox(in.seed[row], in.offset[row]), group, shared, in.token + row);
}

size_t arrivals_size(const qwen3moe_sample_shape& shape) {
    return (shape.num_rows * sizeof(uint32_t) + 255) / 256 * 256;
}

// The most blocks that a row may get, whatever the device; more than one only where all can be resident.
int max_blocks_per_row(const qwen3moe_sample_shape& shape) {
    const int useful = (shape.vocab_size + kLogitsPerBlock - 1) / kLogitsPerBlock;
    return std::max(1, std::min(useful, kMaxBlocks / shape.num_rows));
}

int32_t check(const qwen3moe_sample_shape* shape) {
    QWEN3MOE_CHECK_ARG(shape, !=, nullptr);
    QWEN3MOE_CHECK_ARG(shape->num_rows, >=, 0);
    QWEN3MOE_CHECK_ARG(shape->num_rows, <=, 65535);
    QWEN3MOE_CHECK_ARG(shape->vocab_size, >, 0);
    QWEN3MOE_CHECK_ARG(shape->vocab_size, <=, 1 << kIndexBits);
    return QWEN3MOE_SUCCESS;
}

int32_t choose_blocks_per_row(const qwen3moe_sample_shape& shape, int* blocks) {
    int device = 0, num_multiprocessors = 0, resident = 0;
    QWEN3MOE_CHECK_CUDA(cudaGetDevice(&device));
    QWEN3MOE_CHECK_CUDA(cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device));
    QWEN3MOE_CHECK_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, sample_kernel, kThreads, 0));
    *blocks = std::max(1, std::min(max_blocks_per_row(shape), resident * num_multiprocessors / shape.num_rows));
    return QWEN3MOE_SUCCESS;
}

int32_t launch(const qwen3moe_sample_shape& shape, Args args, cudaStream_t stream) {
    int blocks = 0;
    const int32_t status = choose_blocks_per_row(shape, &blocks);
    if (status != QWEN3MOE_SUCCESS) return status;
    cudaLaunchAttribute all_resident = {};
    all_resident.id = cudaLaunchAttributeCooperative;
    all_resident.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks, shape.num_rows);
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    config.attrs = &all_resident;
    config.numAttrs = blocks > 1 ? 1 : 0;
    if (blocks > 1) QWEN3MOE_CHECK_CUDA(cudaMemsetAsync(args.arrivals, 0, arrivals_size(shape), stream));
    QWEN3MOE_CHECK_CUDA(cudaLaunchKernelEx(&config, sample_kernel, args));
    return QWEN3MOE_SUCCESS;
}

}  // namespace

}  // namespace qwen3moe::sample

extern "C" size_t qwen3moe_sample_workspace_size(const qwen3moe_sample_shape* shape) {
    using namespace qwen3moe::sample;
    if (check(shape) != QWEN3MOE_SUCCESS || shape->num_rows == 0) return 0;
    const size_t num_shared_rows = max_blocks_per_row(*shape) > 1 ? shape->num_rows : 0;
    return arrivals_size(*shape) + num_shared_rows * sizeof(RowMemory);
}

extern "C" int32_t qwen3moe_sample(const qwen3moe_sample_shape* shape, const qwen3moe_sample_tensors* tensors,
                                   void* workspace, size_t workspace_size, qwen3moe_stream stream) {
    using namespace qwen3moe::sample;
    const int32_t status = check(shape);
    if (status != QWEN3MOE_SUCCESS || shape->num_rows == 0) return status;
    QWEN3MOE_CHECK_ARG(tensors, !=, nullptr);
    const size_t needed = qwen3moe_sample_workspace_size(shape);
    if (workspace_size < needed) {
        return qwen3moe::fail(QWEN3MOE_WORKSPACE_TOO_SMALL, "sample: needs a workspace of " + std::to_string(needed) +
                                                                " bytes, got " + std::to_string(workspace_size));
    }
    char* memory = static_cast<char*>(workspace);
    Args args = {*tensors, shape->vocab_size, reinterpret_cast<RowMemory*>(memory + arrivals_size(*shape)),
                 reinterpret_cast<uint32_t*>(memory)};
    return launch(*shape, args, stream);
}
