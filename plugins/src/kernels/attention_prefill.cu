// Attention of sequences with many new tokens: a CTA takes a tile of query rows of one sequence and key/value head and
// passes over the keys its rows may see.
#include "attention_launch.cuh"
#include "attention_warp.cuh"

namespace qwen3moe {

namespace {

constexpr int kWarps = PrefillConfig::kWarps;
constexpr int kThreads = PrefillConfig::kThreads;
constexpr int kKeys = PrefillConfig::kKeys;
constexpr int kStages = PrefillConfig::kStages;

template <typename T, int kHeadDim>
constexpr size_t shared_bytes(int rows) {
    return (rows + kStages * kKeys) * kHeadDim * sizeof(T);
}

// The tiles keys 0, values 0, keys 1, values 1, ... of one sequence and head, some of them ahead in shared memory.
template <typename T, int kHeadDim>
struct KvStream {
    using Tile = SharedTile<T, kHeadDim>;

    const PagedKv<T, kHeadDim>& kv;
    T* ring;  // [kStages, kKeys, D]
    int32_t seq, kv_head;
    int32_t end;  // one past the last key
    int32_t issued = 0;
    int taken_stage = kStages - 1;  // of the last take()

    __device__ __forceinline__ Tile stage(int idx) const { return {ring + idx * kKeys * kHeadDim}; }

    __device__ __forceinline__ void issue(int into_stage) {
        const int32_t first = issued / 2 * kKeys;
        const KvPart part = issued % 2 == 0 ? KvPart::kKey : KvPart::kValue;
        if (first < end)
            load_kv_tile<kKeys, kThreads>(stage(into_stage), kv, part, seq, kv_head, first, end, threadIdx.x);
        cp_async_commit();  // also when empty: take() counts groups
        ++issued;
    }

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int i = 0; i < kStages - 1; ++i) issue(i);
    }

    // The next tile, visible to all threads. At the barrier all are done with the last one, so its stage is filled
    // again.
    __device__ __forceinline__ Tile take() {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        issue(taken_stage);
        taken_stage = taken_stage + 1 == kStages ? 0 : taken_stage + 1;
        return stage(taken_stage);
    }
};

// Rows first_row.. of the sequence into a tile; rows past its last are zero.
template <int kRows, typename T, int kHeadDim>
__device__ __forceinline__ void load_queries(const SharedTile<T, kHeadDim>& tile,
                                             const AttentionParams<T, kHeadDim>& params, const QueryRows& rows,
                                             int32_t first_row) {
    constexpr int kLanes = kRowLanes<kHeadDim>;
    const int lane = threadIdx.x % kLanes, count = min(kRows, rows.count() - first_row);
    const HeadRow weight = load_row<kHeadDim>(params.q_norm_weight, lane);
#pragma unroll 2
    for (int row = threadIdx.x / kLanes; row < count; row += kThreads / kLanes)
        load_query(tile, row, params, rows, first_row + row, weight, lane);
    zero_rows<kThreads>(tile, count, kRows);
}

// Rows of the output through the warp's own rows of the query tile, so that they leave in 16-byte pieces.
template <typename T, int kHeadDim, int kRowTiles>
__device__ __forceinline__ void store_output(const WarpAttention<T, kHeadDim, kRowTiles, kKeys>& warp,
                                             const SharedTile<T, kHeadDim>& tile, int first_tile_row,
                                             const AttentionParams<T, kHeadDim>& params, const QueryRows& rows,
                                             int32_t first_row) {
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float inverse = 1.0f / warp.row_sum[r][half];
            const int row = first_tile_row + 16 * r + 8 * half + group;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                const float (&o)[4] = warp.out[r][n];
                *reinterpret_cast<uint32_t*>(tile.chunk(row, n) + 2 * quad) =
                    pack2<T>(o[2 * half] * inverse, o[2 * half + 1] * inverse);
            }
        }
    __syncwarp();
    constexpr int kLanes = kHeadDim / kVector;
    for (int i = lane / kLanes; i < 16 * kRowTiles; i += 32 / kLanes) {
        const int tile_row = first_tile_row + i;
        const int32_t row = first_row + tile_row;
        if (row >= rows.count()) break;
        T* destination = params.out_row(rows.token(row), rows.head(row)) + lane % kLanes * kVector;
        *reinterpret_cast<uint4*>(destination) = *reinterpret_cast<const uint4*>(tile.chunk(tile_row, lane % kLanes));
    }
}

template <typename T, int kHeadDim, int kRowTiles>
__global__ void __launch_bounds__(kThreads, 2) prefill_kernel(const AttentionParams<T, kHeadDim> params) {
    using Warp = WarpAttention<T, kHeadDim, kRowTiles, kKeys>;
    constexpr int kRows = kWarps * Warp::kRows;
    extern __shared__ uint4 shared[];

    const PrefillTile tile = PrefillTile::of_block<kRows>(params);
    if (tile.is_empty) return;
    const QueryRows& rows = tile.rows;
    const int32_t first_row = tile.first_row, end = tile.end<kRows>();
    const SharedTile<T, kHeadDim> queries{reinterpret_cast<T*>(shared)};
    KvStream<T, kHeadDim> stream{params.kv, queries.data + kRows * kHeadDim, rows.seq.idx, rows.kv_head, end};
    stream.start();
    load_queries<kRows>(queries, params, rows, first_row);

    const int first_warp_row = threadIdx.x / 32 * Warp::kRows;
    const int32_t seen_by_all = rows.position(first_row) + 1;

    Warp warp;
    for (int32_t key = 0; key < end; key += kKeys) {
        typename Warp::Scores scores;
        Warp::multiply_keys(scores, queries, first_warp_row, stream.take());
        if (key + kKeys > seen_by_all) Warp::mask(scores, rows, first_row + first_warp_row, key);
        warp.softmax(scores, params.scale_log2);
        warp.multiply_values(scores, stream.take());
    }
    warp.reduce_sums();
    store_output(warp, queries, first_warp_row, params, rows, first_row);
}

template <typename T, int kHeadDim, int kRowTiles>
cudaError_t launch(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan, cudaStream_t stream) {
    const auto kernel = prefill_kernel<T, kHeadDim, kRowTiles>;
    constexpr size_t kShared = shared_bytes<T, kHeadDim>(kWarps * 16 * kRowTiles);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) return error;
    kernel<<<plan.prefill_tiles * params.num_kv_heads, kThreads, kShared, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_prefill(const AttentionParams<T, kHeadDim>& params, const AttentionPlan& plan, cudaStream_t stream) {
    return plan.prefill_rows == 128 ? launch<T, kHeadDim, 2>(params, plan, stream)
                                    : launch<T, kHeadDim, 1>(params, plan, stream);
}

template cudaError_t launch_prefill(const AttentionParams<__nv_bfloat16, 64>&, const AttentionPlan&, cudaStream_t);
template cudaError_t launch_prefill(const AttentionParams<__nv_bfloat16, 128>&, const AttentionPlan&, cudaStream_t);
template cudaError_t launch_prefill(const AttentionParams<__half, 64>&, const AttentionPlan&, cudaStream_t);
template cudaError_t launch_prefill(const AttentionParams<__half, 128>&, const AttentionPlan&, cudaStream_t);

}  // namespace qwen3moe
