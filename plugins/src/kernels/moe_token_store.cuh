// From the accumulators of the wgmma path to memory. There weights are the rows of a product and tokens its columns, so
// results are turned over in shared memory, and a token's features leave together.
#pragma once

#include "mma.cuh"
#include "moe_params.cuh"
#include "moe_swiglu.cuh"
#include "moe_tile_loader.cuh"

namespace qwen3moe::moe {

// Four 8x8 matrices of 16-bit elements, transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
#endif
}

// Where the results of a warpgroup's 64 weight rows by up to kTokens tokens go: `kFeatures` outputs of each token.
template <typename T, Product kProduct, int kTokens>
class TokenStore {
   public:
    static constexpr int kFeatures = output_cols<kProduct>(64);
    static constexpr int kStagingRow = kFeatures * 2;  // bytes
    using Accumulators = float[kTokens / 8][4];

    int first_row, num_rows;
    int first_col;  // of the first block's outputs

    // Where down's rows go, a row a lane.
    __device__ __forceinline__ int find_row(const Params<T>& p) const {
        const int lane = thread() % 32;
        const int token = lane / kWarpRows * kPass + thread() / 32 * kWarpRows + lane % kWarpRows;
        return kGateUp ? 0 : __ldcg(p.row_assignment + first_row + min(token, num_rows - 1));
    }

    // By the 128 threads of warpgroup `group`; block: of its two blocks of 64 weight rows.
    __device__ __forceinline__ void store(const Params<T>& p, const Accumulators& acc, unsigned char* staging,
                                          int group, int block, int own_row) const {
        sync_group(group);  // what was staged before has left
        stage(acc, staging);
        sync_group(group);
        const int stride = kGateUp ? p.intermediate_size : p.hidden_size;
        const int col = first_col + block * kFeatures + thread() % kLanes * 8;
        T* out = (kGateUp ? p.activation : p.expert_out) + col;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            const int token = thread() / kLanes + i * kPass;
            const int row =
                kGateUp ? first_row + token : __shfl_sync(~0u, own_row, i * kWarpRows + thread() % 32 / kLanes);
            if (token >= num_rows || col >= stride) continue;
            const uint4 v = *reinterpret_cast<const uint4*>(place(staging, token, thread() % kLanes));
            *reinterpret_cast<uint4*>(out + static_cast<size_t>(row) * stride) = v;
        }
    }

   private:
    static constexpr bool kGateUp = kProduct == Product::kGateUp;
    static constexpr int kLanes = kFeatures / 8;   // 16 bytes a thread
    static constexpr int kWarpRows = 32 / kLanes;  // that a warp moves at once
    static constexpr int kPass = 4 * kWarpRows;
    static constexpr int kPasses = (kTokens + kPass - 1) / kPass;

    __device__ __forceinline__ static int thread() { return threadIdx.x % 128; }

    __device__ __forceinline__ static void sync_group(int group) {
        asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    }

    // Of a token's 8 features: no two of 8 consecutive tokens in the same banks.
    __device__ __forceinline__ static unsigned char* place(unsigned char* staging, int token, int chunk) {
        const int turn = kLanes == 8 ? token % 8 : token / 2 % 4;
        return staging + token * kStagingRow + (chunk ^ turn) * kChunkBytes;
    }

    // In gate_up a warp has 8 gate rows and the 8 up rows of the same features; see moe_weight_boxes.cuh.
    __device__ __forceinline__ void stage(const Accumulators& acc, unsigned char* staging) const {
        const int lane = threadIdx.x % 32, warp = thread() / 32, matrix = lane / 8;
        constexpr int kGroupsAtOnce = kGateUp ? 4 : 2;
#pragma unroll
        for (int g = 0; g < kTokens / 8; g += kGroupsAtOnce) {
            if (g * 8 >= num_rows) break;
            uint32_t r[4];
            int token, chunk;
            if constexpr (kGateUp) {
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    const float (&x)[4] = acc[min(g + m, kTokens / 8 - 1)];
                    r[m] = pack2<T>(swiglu(x[0], x[2]), swiglu(x[1], x[3]));
                }
                token = min((g + matrix) * 8, kTokens - 8) + lane % 8;
                chunk = warp;
            } else {
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    const float (&x)[4] = acc[min(g + m / 2, kTokens / 8 - 1)];
                    r[m] = pack2<T>(x[m % 2 * 2], x[m % 2 * 2 + 1]);
                }
                token = min((g + matrix / 2) * 8, kTokens - 8) + lane % 8;
                chunk = warp * 2 + matrix % 2;
            }
            stmatrix_x4_trans(place(staging, token, chunk), r);
        }
    }
};

}  // namespace qwen3moe::moe
