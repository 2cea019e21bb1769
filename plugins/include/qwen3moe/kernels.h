/* The C API of libqwen3moe_kernels: pointers, sizes and a stream in, a status out.
 *
 * Every pointer is device memory. No call allocates, synchronises or reads device memory on the host, so each may be
 * captured into a CUDA graph. The operators are those declared in qwen3moe_plugins/ops.py, in the same terms.
 * Scratch memory comes from the caller: ask the *_workspace_size function, which depends on shapes alone.
 * From compute capability 9.0 on, kernels start before those ahead of them in the stream have ended, and then read what
 * is marked "early". That must not be written by a launch of this library just ahead: between its writing and its first
 * use lies at least one launch or copy that waits for all before it, or the end of a graph. What is not marked may be.
 * A status is 0 (success) or an error; qwen3moe_last_error() then names, for the calling thread, what was wrong.
 */
#ifndef QWEN3MOE_KERNELS_H
#define QWEN3MOE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* qwen3moe_stream; /* a cudaStream_t */

/* FP32 is for the collectives alone; the other operators refuse it. */
typedef enum { QWEN3MOE_BF16 = 0, QWEN3MOE_FP16 = 1, QWEN3MOE_FP32 = 2 } qwen3moe_dtype;

typedef enum {
    QWEN3MOE_SUCCESS = 0,
    QWEN3MOE_INVALID_ARGUMENT = 1, /* a shape, dtype or pointer the operator does not take */
    QWEN3MOE_WORKSPACE_TOO_SMALL = 2,
    QWEN3MOE_CUDA_ERROR = 3,
    QWEN3MOE_MISSING_LIBRARY = 4,   /* cuBLASLt was needed and is not there */
    QWEN3MOE_COMMUNICATOR_ERROR = 5 /* no communicator, or a peer or NCCL failed (collective.h) */
} qwen3moe_status;

const char* qwen3moe_last_error(void);
const char* qwen3moe_version(void);
/* The GPUs it was built for, such as "80,90a,120"; the last one also as PTX. */
const char* qwen3moe_architectures(void);

/* PagedAttention. T tokens packed, B sequences, Hq query heads, Hkv key/value heads, D head_dim. */
typedef struct {
    int32_t dtype;        /* qwen3moe_dtype of qkv, norm weights, kv_cache, out */
    int32_t num_tokens;   /* T, padding included */
    int32_t num_seqs;     /* B */
    int32_t num_heads;    /* Hq */
    int32_t num_kv_heads; /* Hkv, divides Hq, Hq / Hkv <= 16 */
    int32_t head_dim;     /* D: 64 or 128 */
    int32_t num_blocks;
    int32_t block_size;    /* 16, 32 or 64 */
    int32_t max_blocks;    /* width of block_table */
    int32_t num_positions; /* P, rows of cos_sin_cache */
    float scale;           /* of query . key before the softmax */
    float eps;             /* of the RMS norms */
} qwen3moe_paged_attention_shape;

typedef struct {
    const void* qkv;             /* [T, (Hq + 2 Hkv) * D] */
    const void* q_norm_weight;   /* [D], early */
    const void* k_norm_weight;   /* [D], early */
    const float* cos_sin_cache;  /* [P, D]: D/2 cosines, then D/2 sines; early */
    const int32_t* positions;    /* [T], early */
    void* kv_cache;              /* [num_blocks, 2, Hkv, block_size, D], written; read, of earlier tokens early */
    const int32_t* block_table;  /* [B, max_blocks], early */
    const int32_t* cu_seqlens;   /* [B + 1], early */
    const int32_t* context_lens; /* [B], new tokens included; early */
    void* out;                   /* [T, Hq * D] */
} qwen3moe_paged_attention_tensors;

size_t qwen3moe_paged_attention_workspace_size(const qwen3moe_paged_attention_shape* shape);
int32_t qwen3moe_paged_attention(const qwen3moe_paged_attention_shape* shape,
                                 const qwen3moe_paged_attention_tensors* tensors, void* workspace,
                                 size_t workspace_size, qwen3moe_stream stream);

/* MoE. E experts, E_local held here, H hidden size, I expert width. */
typedef struct {
    int32_t dtype;             /* qwen3moe_dtype of hidden, router_logits, gate_up, down, out */
    int32_t num_tokens;        /* T */
    int32_t hidden_size;       /* H, a multiple of 64 */
    int32_t intermediate_size; /* I, a multiple of 8 */
    int32_t num_experts;       /* E <= 512 */
    int32_t num_local_experts; /* E_local */
    int32_t top_k;             /* <= 16 */
    int32_t norm_topk_prob;    /* 0 or 1 */
    int32_t map_rows;          /* R <= 32, rows of expert_map; 0: it is [E] and positions are not read */
    int32_t num_seqs;          /* B, if load is not null */
} qwen3moe_moe_shape;

typedef struct {
    const void* hidden;        /* [T, H] */
    const void* router_logits; /* [T, E] */
    const void* gate_up;       /* [E_local, 2 I, H]: I gate rows, then I up rows; early */
    const void* down;          /* [E_local, H, I], early */
    const int32_t* expert_map; /* [R, E]: slot in gate_up and down, or -1; early */
    void* out;                 /* [T, H] */
    /* Of experts with replicas; may be null. Row (position % R) of expert_map holds for a token. */
    const int32_t* positions;  /* [T], if map_rows > 0; early */
    const int32_t* cu_seqlens; /* [B + 1], if load is not null; early */
    int32_t* load;             /* [E]: tokens ahead of cu_seqlens[B] that an expert served here are added */
} qwen3moe_moe_tensors;

size_t qwen3moe_moe_workspace_size(const qwen3moe_moe_shape* shape);
int32_t qwen3moe_moe(const qwen3moe_moe_shape* shape, const qwen3moe_moe_tensors* tensors, void* workspace,
                     size_t workspace_size, qwen3moe_stream stream);

/* RMSNorm and AddRMSNorm. out = weight * x / rms(x), where with a residual x stands for x + residual, rounded first. */
typedef struct {
    int32_t dtype;       /* qwen3moe_dtype of every tensor */
    int32_t num_tokens;  /* T */
    int32_t hidden_size; /* H, a multiple of 8, at most 16384 */
    float eps;           /* added to the mean square */
} qwen3moe_rms_norm_shape;

typedef struct {
    const void* x;        /* [T, H] */
    const void* residual; /* [T, H], or NULL */
    const void* weight;   /* [H], early */
    void* out;            /* [T, H] */
    void* residual_out;   /* [T, H]: x + residual; NULL if residual is */
} qwen3moe_rms_norm_tensors;

size_t qwen3moe_rms_norm_workspace_size(const qwen3moe_rms_norm_shape* shape);
int32_t qwen3moe_rms_norm(const qwen3moe_rms_norm_shape* shape, const qwen3moe_rms_norm_tensors* tensors,
                          void* workspace, size_t workspace_size, qwen3moe_stream stream);

/* Linear: out = x @ weight^T, sums in fp32. T tokens, K in_features, N out_features.
 * Most products take cuBLASLt, which is looked up at run time; the first call of a shape prepares it and must not be
 * captured. */
typedef struct {
    int32_t dtype;                     /* qwen3moe_dtype of x and weight */
    int32_t out_float32;               /* 1: out is float; 0: out is rounded to dtype */
    int32_t num_tokens;                /* T */
    int32_t in_features, out_features; /* K and N, multiples of 8 */
} qwen3moe_linear_shape;

typedef struct {
    const void* x;      /* [T, K] */
    const void* weight; /* [N, K], early */
    void* out;          /* [T, N] */
} qwen3moe_linear_tensors;

size_t qwen3moe_linear_workspace_size(const qwen3moe_linear_shape* shape);
int32_t qwen3moe_linear(const qwen3moe_linear_shape* shape, const qwen3moe_linear_tensors* tensors, void* workspace,
                        size_t workspace_size, qwen3moe_stream stream);

/* Pseudo-random weights: element i of a matrix is low + (high - low) * u, u in [0, 1) from the splitmix64 hash of seed
   and i. What is filled is a part of it: rows of `columns` elements, of which the first starts at element `first`, and
   each other `row_stride` elements behind the one before. */
typedef struct {
    uint64_t count; /* rows * columns */
    uint64_t columns;
    uint64_t row_stride;
    uint64_t first;
    uint64_t seed;
    int32_t dtype; /* qwen3moe_dtype of values */
    float low, high;
} qwen3moe_fill_shape;

typedef struct {
    void* values; /* [count] */
} qwen3moe_fill_tensors;

size_t qwen3moe_fill_workspace_size(const qwen3moe_fill_shape* shape);
int32_t qwen3moe_fill(const qwen3moe_fill_shape* shape, const qwen3moe_fill_tensors* tensors, void* workspace,
                      size_t workspace_size, qwen3moe_stream stream);

/* Batch sampling, one row of logits a request. All arrays have num_rows elements unless said otherwise. */
typedef struct {
    int32_t num_rows;
    int32_t vocab_size;
} qwen3moe_sample_shape;

typedef struct {
    const float* logits;      /* [num_rows, vocab_size] */
    const float* temperature; /* 0: greedy, the lower index among equals */
    const int32_t* top_k;     /* 0: off */
    const float* top_p;       /* 1: off */
    const float* min_p;       /* 0: off */
    const uint64_t* seed;     /* Philox key of the request */
    const uint64_t* offset;   /* Philox counter: the index of the token being drawn */
    int32_t* token;           /* out */
} qwen3moe_sample_tensors;

size_t qwen3moe_sample_workspace_size(const qwen3moe_sample_shape* shape);
int32_t qwen3moe_sample(const qwen3moe_sample_shape* shape, const qwen3moe_sample_tensors* tensors, void* workspace,
                        size_t workspace_size, qwen3moe_stream stream);

#ifdef __cplusplus
}
#endif
#endif
