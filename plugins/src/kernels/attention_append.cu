#include "attention_launch.cuh"
#include "attention_rows.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace {

constexpr int kThreads = 256;

// D / 16 lanes for each (token, key/value head).
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    append_kernel(const AttentionParams<T, kHeadDim> params, int32_t* next_tile) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
    const int32_t token = static_cast<int32_t>(row / params.num_kv_heads);
    const int32_t kv_head = static_cast<int32_t>(row % params.num_kv_heads);
    const bool is_padding = token >= params.batch.first_padding_token();
    const Sequence seq = is_padding ? Sequence{} : params.batch.sequence_of_token(token);

    wait_for_predecessor();
    allow_successor();
    zero_padding(params);
    if (blockIdx.x == 0 && threadIdx.x == 0) *next_tile = 0;
    if (seq.num_new > params.max_decode_tokens)
        append_token(params, seq, token - seq.first_token, kv_head, threadIdx.x % kLanes);
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_append(const AttentionParams<T, kHeadDim>& params, const Device& device, int32_t* next_tile,
                          cudaStream_t stream) {
    constexpr int kRowsPerCta = kThreads / kRowLanes<kHeadDim>;
    const int64_t rows = int64_t{params.batch.num_tokens} * params.num_kv_heads;
    const dim3 grid(static_cast<unsigned>((rows + kRowsPerCta - 1) / kRowsPerCta));
    const Launch launch{grid, kThreads, 0, stream, device.has_dependent_launch()};
    return launch_kernel(append_kernel<T, kHeadDim>, launch, params, next_tile);
}

template cudaError_t launch_append(const AttentionParams<__nv_bfloat16, 64>&, const Device&, int32_t*, cudaStream_t);
template cudaError_t launch_append(const AttentionParams<__nv_bfloat16, 128>&, const Device&, int32_t*, cudaStream_t);
template cudaError_t launch_append(const AttentionParams<__half, 64>&, const Device&, int32_t*, cudaStream_t);
template cudaError_t launch_append(const AttentionParams<__half, 128>&, const Device&, int32_t*, cudaStream_t);

}  // namespace qwen3moe
