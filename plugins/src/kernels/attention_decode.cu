// Attention of sequences with few new tokens (flash-decoding): 16 query rows, the keys split over CTAs and their warps.
#include "attention_decode.cuh"
#include "attention_launch.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace {

using Config = DecodeConfig;

template <typename T, int kHeadDim>
struct DecodeShared {  // of the union, one after the other
    T queries[Config::kRows * kHeadDim];
    union {
        T ring[Config::kWarps][Config::kStages][2][Config::kKeys * kHeadDim];  // keys, values
        WarpPartial<kHeadDim> partials[Config::kWarps];
    };
    DecodeSchedule::Shared schedule;
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(Config::kThreads, 3)
    decode_kernel(const AttentionParams<T, kHeadDim> params, const DecodeSchedule schedule,
                  const SplitPartials<kHeadDim> partials, bool zeroes_padding) {
    extern __shared__ uint4 shared_memory[];
    auto& shared = *reinterpret_cast<DecodeShared<T, kHeadDim>*>(shared_memory);
    allow_successor();
    const int32_t kv_head = blockIdx.x % params.num_kv_heads;
    DecodeItem item;
    if (!schedule.find(blockIdx.x / params.num_kv_heads, shared.schedule, item)) {
        wait_for_predecessor();
        if (zeroes_padding) zero_padding(params);
        return;
    }
    const QueryRows rows{params.batch.sequence(item.seq), kv_head, params.group_size};
    const DecodeRange range(item, rows, schedule.tile_tokens);

    const KeyRing<T, kHeadDim> ring{shared.ring};
    const WarpStream<T, kHeadDim> stream{params, rows, range, ring};
    const SharedTile<T, kHeadDim> queries{shared.queries};
    const RowOperands<T, kHeadDim> operands(params, rows, range);
    stream.start();
    operands.prefetch();
    wait_for_predecessor();
    if (zeroes_padding) zero_padding(params);
    load_queries_and_append(queries, ring, params, rows, range);
    __syncthreads();

    WarpAttention<T, kHeadDim, 1, Config::kKeys> warp;
    stream.run(warp, queries);
    __syncthreads();
    shared.partials[threadIdx.x / 32].store(warp, params.scale_log2);
    __syncthreads();

    const auto out_at = [&](int row, int column) {
        return params.out_row(rows.token(range.first_row + row), rows.head(range.first_row + row)) + 4 * column;
    };
    const SplitSet<kHeadDim> splits{partials, partials.at(item.first_partial + item.row_tile, kv_head),
                                    partials.at(item.num_row_tiles, 0), item.num_splits};
    for_each_vector<kHeadDim>(range.num_rows, [&](int row, int column) {
        MaxSum total;
        const float4 sum = merge_warps(shared.partials, row, column, total);
        if (item.num_splits == 1) {
            store_scaled(out_at(row, column), sum, 1.0f / total.sum);
        } else {
            const int64_t at = splits.first + item.split * splits.stride;
            partials.out_row(at, row)[column] = sum;
            if (column == 0) *partials.max_sum_row(at, row) = {total.max, total.sum};
        }
    });
    if (item.num_splits == 1 || !splits.finish(item.split)) return;

    for_each_vector<kHeadDim>(range.num_rows, [&](int row, int column) {
        store_scaled(out_at(row, column), splits.merged(row, column), 1.0f);
    });
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_decode(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan, const Device& device,
                          void* workspace, cudaStream_t stream) {
    if (plan.cluster_splits != 0) return launch_decode_cluster(params, plan, stream);
    char* const base = static_cast<char*>(workspace);
    const SplitPartials<kHeadDim> partials{reinterpret_cast<float4*>(base + plan.partial_out_offset),
                                           reinterpret_cast<float2*>(base + plan.partial_max_sum_offset),
                                           reinterpret_cast<uint64_t*>(base + plan.finished_offset),
                                           params.num_kv_heads};
    const DecodeSchedule schedule{params.batch, plan.max_decode_tokens, Config::kRows / params.group_size,
                                  plan.target_items};
    constexpr size_t kShared = sizeof(DecodeShared<T, kHeadDim>);
    const dim3 grid(plan.decode_items * params.num_kv_heads);
    // A grid that fills the GPU would be placed unevenly while the kernel ahead drains: 322 us instead of 250 at 64
    // sequences of 8192 on an H200.
    const bool dependent = device.has_dependent_launch() && grid.x <= 2u * device.num_multiprocessors;
    const Launch launch{grid, Config::kThreads, kShared, stream, dependent};
    return launch_kernel(decode_kernel<T, kHeadDim>, launch, params, schedule, partials, plan.prefill_rows == 0);
}

template cudaError_t launch_decode(const AttentionParams<__nv_bfloat16, 64>&, const AttentionPlan&, const Device&,
                                   void*, cudaStream_t);
template cudaError_t launch_decode(const AttentionParams<__nv_bfloat16, 128>&, const AttentionPlan&, const Device&,
                                   void*, cudaStream_t);
template cudaError_t launch_decode(const AttentionParams<__half, 64>&, const AttentionPlan&, const Device&, void*,
                                   cudaStream_t);
template cudaError_t launch_decode(const AttentionParams<__half, 128>&, const AttentionPlan&, const Device&, void*,
                                   cudaStream_t);

}  // namespace qwen3moe
