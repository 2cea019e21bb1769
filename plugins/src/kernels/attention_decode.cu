// Attention of sequences with few new tokens (flash-decoding): 16 query rows, the keys split over CTAs and their warps.
#include "attention_launch.cuh"
#include "attention_merge.cuh"
#include "attention_schedule.cuh"
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

// The part of an item's sequence that its CTA works on.
struct DecodeRange {
    int32_t first_row, num_rows;
    int32_t first_position;  // of the first row: all rows see the keys up to here
    int32_t begin, end;      // keys

    __device__ __forceinline__ DecodeRange(const DecodeItem& item, const QueryRows& rows, int32_t tile_tokens) {
        first_row = item.row_tile * tile_tokens * rows.group_size;
        num_rows = min(tile_tokens * rows.group_size, rows.count() - first_row);
        first_position = rows.position(first_row);
        const int32_t units = ceil_div(DecodeSchedule::num_units(rows.seq), item.num_splits);
        begin = item.split * units * Config::kUnit;
        end = min(begin + units * Config::kUnit, rows.position(first_row + num_rows - 1) + 1);
    }
};

// The range's queries into a tile, and the new tokens whose positions lie in the range into the cache, in one pass so
// that their loads overlap. Every CTA writes what it is going to read: CTAs of other row tiles may write the same
// bytes, but none waits for another.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_queries_and_append(const SharedTile<T, kHeadDim>& queries,
                                                        const AttentionParams<T, kHeadDim>& params,
                                                        const QueryRows& rows, const DecodeRange& range) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int lane = threadIdx.x % kLanes;
    const int32_t first_new = max(range.begin - rows.seq.position(0), 0);
    const int32_t num_appended = max(range.end - rows.seq.position(first_new), 0);
    for (int32_t i = threadIdx.x / kLanes; i < range.num_rows + num_appended; i += Config::kThreads / kLanes) {
        if (i < range.num_rows) {
            const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
            load_query(queries, i, params, rows, range.first_row + i, weight, lane);
        } else {
            append_token(params, rows.seq, first_new + i - range.num_rows, rows.kv_head, lane);
        }
    }
    zero_rows<Config::kThreads>(queries, range.num_rows, Config::kRows);
}

// One warp's pass over its tiles of the range: every kWarps-th tile of kKeys keys, kStages of them on their way.
template <typename T, int kHeadDim>
struct WarpStream {
    const AttentionParams<T, kHeadDim>& params;
    const QueryRows& rows;
    const DecodeRange& range;
    T (*ring)[2][Config::kKeys * kHeadDim];  // [kStages]

    __device__ __forceinline__ int32_t first_key(int step) const {
        return range.begin + (step * Config::kWarps + static_cast<int>(threadIdx.x) / 32) * Config::kKeys;
    }
    __device__ __forceinline__ SharedTile<T, kHeadDim> tile(int step, KvPart part) const {
        return {ring[step % Config::kStages][static_cast<int>(part)]};
    }

    __device__ __forceinline__ void issue(int step) const {
        const int32_t first = first_key(step);
        if (first < range.end)
            for (KvPart part : {KvPart::kKey, KvPart::kValue})
                load_kv_tile<Config::kKeys, 32>(tile(step, part), params.kv, part, rows.seq.idx, rows.kv_head, first,
                                                range.end, threadIdx.x % 32);
        cp_async_commit();  // also when empty: run() counts groups
    }

    // A tile that holds new tokens can be read only when this CTA has written them.
    __device__ __forceinline__ bool has_new_tokens(int step) const {
        return first_key(step) + Config::kKeys > rows.seq.position(0);
    }
    __device__ __forceinline__ void start_old() const {
#pragma unroll
        for (int step = 0; step < Config::kStages; ++step)
            if (!has_new_tokens(step)) issue(step);
    }
    __device__ __forceinline__ void start_new() const {
#pragma unroll
        for (int step = 0; step < Config::kStages; ++step)
            if (has_new_tokens(step)) issue(step);
    }

    __device__ __forceinline__ void run(WarpAttention<T, kHeadDim, 1, Config::kKeys>& warp,
                                        const SharedTile<T, kHeadDim>& queries) const {
        using Warp = WarpAttention<T, kHeadDim, 1, Config::kKeys>;
        for (int step = 0; first_key(step) < range.end; ++step) {
            cp_async_wait<Config::kStages - 1>();
            __syncwarp();
            typename Warp::Scores scores;
            Warp::multiply_keys(scores, queries, 0, tile(step, KvPart::kKey));
            if (first_key(step) + Config::kKeys > range.first_position + 1)
                Warp::mask(scores, rows, range.first_row, first_key(step));
            warp.softmax(scores, params.scale_log2);
            warp.multiply_values(scores, tile(step, KvPart::kValue));
            __syncwarp();  // all lanes have read the stage that is filled next
            issue(step + Config::kStages);
        }
        warp.reduce_sums();
    }
};

// Calls body(row, column) for each four columns of the range's rows, shared out among the threads.
template <int kHeadDim, typename Body>
__device__ __forceinline__ void for_each_vector(int32_t num_rows, Body body) {
    for (int i = threadIdx.x; i < num_rows * (kHeadDim / 4); i += Config::kThreads)
        body(i / (kHeadDim / 4), i % (kHeadDim / 4));
}

// They differ from layer to layer: from memory they would come a microsecond later than the queries do.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prefetch_norm_weights(const AttentionParams<T, kHeadDim>& params) {
    const T* weight = threadIdx.x / 32 == 0 ? params.q_norm_weight : params.k_norm_weight;
    const int element = threadIdx.x % 32 * 16;  // 32 bytes, a sector
    if (threadIdx.x < 64 && element < kHeadDim) asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + element));
}

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

    const WarpStream<T, kHeadDim> stream{params, rows, range, shared.ring[threadIdx.x / 32]};
    const SharedTile<T, kHeadDim> queries{shared.queries};
    stream.start_old();
    prefetch_norm_weights(params);
    wait_for_predecessor();
    if (zeroes_padding) zero_padding(params);
    load_queries_and_append(queries, params, rows, range);
    __syncthreads();
    stream.start_new();

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
        for (const auto& partial : shared.partials) total.merge(partial.max_sum[row]);
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (const auto& partial : shared.partials)
            add_weighted(sum, total.weight(partial.max_sum[row].x),
                         *reinterpret_cast<const float4*>(&partial.out[row][4 * column]));
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
