// Attention of a decode step of few sequences on compute capability 9.0: the splits of a sequence are a cluster of
// CTAs, which merge their partial results through distributed shared memory. In global memory that takes 6 us of 13 at
// one sequence of 1024. Every row tile has as many splits: with more sequences, attention_decode.cu balances them
// better.
#include "attention_decode.cuh"
#include "attention_launch.cuh"
#include "cluster.cuh"
#include "launch.cuh"

namespace qwen3moe {

namespace {

using Config = DecodeConfig;

template <int kHeadDim>
struct CtaPartial {
    float4 out[Config::kRows][kHeadDim / 4];
    float2 max_sum[Config::kRows];
};

template <typename T, int kHeadDim>
struct ClusterShared {  // of the union, one after the other
    T queries[Config::kRows * kHeadDim];
    union {
        T ring[Config::kWarps][Config::kStages][2][Config::kKeys * kHeadDim];  // keys, values
        struct {
            WarpPartial<kHeadDim> warps[Config::kWarps];
            CtaPartial<kHeadDim> cta;
        } partials;
    };
};

#if __CUDA_ARCH__ >= 900

// Four columns of a row of the result, from all CTAs of the cluster in their order.
template <int kHeadDim>
__device__ __forceinline__ float4 merge_cluster(CtaPartial<kHeadDim>& own, int num_splits, int row, int column) {
    return merge_splits(num_splits, [&](int split) {
        const CtaPartial<kHeadDim>* const other = shared_of(&own, split);
        return SplitPart{other->max_sum[row], other->out[row][column]};
    });
}

#endif

// Grid: a cluster for each (row tile, key/value head) there may be.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(Config::kThreads, 3)
    cluster_kernel(const AttentionParams<T, kHeadDim> params, const DecodeSchedule schedule, int num_splits) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint4 shared_memory[];
    auto& shared = *reinterpret_cast<ClusterShared<T, kHeadDim>*>(shared_memory);
    allow_successor();
    const int split = cluster_rank(), idx = static_cast<int>(blockIdx.x) / num_splits;
    prefetch_metadata(params, idx / params.num_kv_heads);
    DecodeItem item{0, 0, 0, split, num_splits, 0};
    if (!schedule.find_row_tile(idx / params.num_kv_heads, item)) {
        wait_for_predecessor();
        zero_padding(params);
        return;
    }
    const QueryRows rows{params.batch.sequence(item.seq), idx % params.num_kv_heads, params.group_size};
    const DecodeRange range(item, rows, schedule.tile_tokens);
    const KeyRing<T, kHeadDim> ring{shared.ring};
    const WarpStream<T, kHeadDim> stream{params, rows, range, ring};
    const SharedTile<T, kHeadDim> queries{shared.queries};
    const RowOperands<T, kHeadDim> operands(params, rows, range);
    stream.start();
    operands.prefetch();
    wait_for_predecessor();
    zero_padding(params);
    load_queries_and_append(queries, ring, params, rows, range);
    __syncthreads();

    WarpAttention<T, kHeadDim, 1, Config::kKeys> warp;
    stream.run(warp, queries);
    __syncthreads();
    shared.partials.warps[threadIdx.x / 32].store(warp, params.scale_log2);
    __syncthreads();
    CtaPartial<kHeadDim>& own = shared.partials.cta;
    for_each_vector<kHeadDim>(range.num_rows, [&](int row, int column) {
        MaxSum total;
        own.out[row][column] = merge_warps(shared.partials.warps, row, column, total);
        if (column == 0) own.max_sum[row] = {total.max, total.sum};
    });
    cluster_arrive();
    cluster_wait();
    const int vectors = range.num_rows * (kHeadDim / 4), share = ceil_div(vectors, num_splits);
    for (int i = split * share + threadIdx.x; i < min((split + 1) * share, vectors); i += Config::kThreads) {
        const int row = i / (kHeadDim / 4), column = i % (kHeadDim / 4);
        T* const out = params.out_row(rows.token(range.first_row + row), rows.head(range.first_row + row));
        store_scaled(out + 4 * column, merge_cluster(own, num_splits, row, column), 1.0f);
    }
    cluster_arrive();  // nobody ends while its partial result is read
    cluster_wait();
#endif
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_decode_cluster(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan,
                                  cudaStream_t stream) {
    const DecodeSchedule schedule{params.batch, plan.max_decode_tokens, Config::kRows / params.group_size,
                                  plan.target_items};
    const unsigned splits = plan.cluster_splits;
    const dim3 grid(params.batch.num_tokens * params.num_kv_heads * splits);
    const Launch launch{grid, Config::kThreads, sizeof(ClusterShared<T, kHeadDim>), stream, true, splits};
    return launch_kernel(cluster_kernel<T, kHeadDim>, launch, params, schedule, plan.cluster_splits);
}

template cudaError_t launch_decode_cluster(const AttentionParams<__nv_bfloat16, 64>&, const AttentionPlan&,
                                           cudaStream_t);
template cudaError_t launch_decode_cluster(const AttentionParams<__nv_bfloat16, 128>&, const AttentionPlan&,
                                           cudaStream_t);
template cudaError_t launch_decode_cluster(const AttentionParams<__half, 64>&, const AttentionPlan&, cudaStream_t);
template cudaError_t launch_decode_cluster(const AttentionParams<__half, 128>&, const AttentionPlan&, cudaStream_t);

}  // namespace qwen3moe
