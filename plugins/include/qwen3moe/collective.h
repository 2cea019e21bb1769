/* Collectives of libqwen3moe_kernels, on the terms of kernels.h: sums and concatenations over the ranks of one group, a
 * process and a GPU each.
 *
 * A process opens NCCL, makes a communicator and says that its operators, plugins included, use it:
 *
 *     qwen3moe_nccl_open(path)                 every rank
 *     qwen3moe_unique_id(id)                   one rank, which sends the id to the others
 *     qwen3moe_communicator_create(...)        every rank; returns when all have agreed and a known sum came out right
 *     qwen3moe_communicator_use(communicator)
 *     ... every rank the same operators with the same shapes in the same order, one stream at a time ...
 *     qwen3moe_communicator_destroy(...)       every rank, after the engines and CUDA graphs that call the operators
 *
 * Only create and destroy wait for peers, and for a limited time. A status of QWEN3MOE_COMMUNICATOR_ERROR leaves the
 * process without a usable group: it reports qwen3moe_last_error() and ends.
 */
#ifndef QWEN3MOE_COLLECTIVE_H
#define QWEN3MOE_COLLECTIVE_H

#include "qwen3moe/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QWEN3MOE_UNIQUE_ID_BYTES = 128, QWEN3MOE_MAX_ONE_SHOT_RANKS = 8 };

typedef struct qwen3moe_communicator qwen3moe_communicator;

/* All but rank and device must be the same on every rank, which is checked. */
typedef struct {
    int64_t one_shot_bytes; /* sums of at most so many bytes go from GPU to GPU in one kernel; 0: all by NCCL */
    double timeout_seconds; /* how long create and destroy wait for peers */
    int32_t rank;
    int32_t world_size; /* with one_shot_bytes at most QWEN3MOE_MAX_ONE_SHOT_RANKS, of one host */
    int32_t device;     /* the rank's GPU, a CUDA ordinal; every rank sees the GPUs of all */
} qwen3moe_communicator_config;

/* Opens the NCCL library at `path` for this process, and switches NVLink multicast off in it. `version` as NCCL counts:
 * 22809 is 2.28.9. Opening the same path again does nothing. */
int32_t qwen3moe_nccl_open(const char* path, int32_t* version);
int32_t qwen3moe_unique_id(uint8_t id[QWEN3MOE_UNIQUE_ID_BYTES]);

/* On timeout a thread is left waiting for the peers: the process must end. */
int32_t qwen3moe_communicator_create(const qwen3moe_communicator_config* config,
                                     const uint8_t id[QWEN3MOE_UNIQUE_ID_BYTES], qwen3moe_communicator** communicator);
int32_t qwen3moe_communicator_destroy(qwen3moe_communicator* communicator);

/* From any thread: ends what this rank's GPU is waiting for, so that a dead peer does not hold it. The results of
 * collectives under way are void, and later ones fail. Returns at once. */
int32_t qwen3moe_communicator_abort(qwen3moe_communicator* communicator);

/* An error if the communicator was aborted, or NCCL noticed a failure of a peer. */
int32_t qwen3moe_communicator_check(qwen3moe_communicator* communicator);

/* The communicator of this process's operators; NULL: none. */
int32_t qwen3moe_communicator_use(qwen3moe_communicator* communicator);

/* While `skip` is 1 the operators succeed and do nothing. For a builder, which times plugins without any peer. */
int32_t qwen3moe_collectives_skip(int32_t skip);

/* AllReduce. out = the sum of x over the ranks, the same bits on each; x and out may be the same memory. */
typedef struct {
    int64_t count; /* elements */
    int32_t dtype; /* qwen3moe_dtype of x and out */
} qwen3moe_all_reduce_shape;

typedef struct {
    const void* x; /* [count] */
    void* out;     /* [count] */
} qwen3moe_all_reduce_tensors;

size_t qwen3moe_all_reduce_workspace_size(const qwen3moe_all_reduce_shape* shape);
int32_t qwen3moe_all_reduce(const qwen3moe_all_reduce_shape* shape, const qwen3moe_all_reduce_tensors* tensors,
                            void* workspace, size_t workspace_size, qwen3moe_stream stream);

/* AllReduceAddRMSNorm: AllReduce of x, then AddRMSNorm, with the same results. No tensor may share another's memory. */
size_t qwen3moe_all_reduce_add_rms_norm_workspace_size(const qwen3moe_rms_norm_shape* shape);
int32_t qwen3moe_all_reduce_add_rms_norm(const qwen3moe_rms_norm_shape* shape, const qwen3moe_rms_norm_tensors* tensors,
                                         void* workspace, size_t workspace_size, qwen3moe_stream stream);

/* AllGather. out holds the x of rank 0, then that of rank 1, and so on. */
typedef struct {
    int64_t count;      /* elements of one rank's x */
    int32_t dtype;      /* qwen3moe_dtype of x and out */
    int32_t world_size; /* that of the communicator */
} qwen3moe_all_gather_shape;

typedef struct {
    const void* x; /* [count] */
    void* out;     /* [world_size, count] */
} qwen3moe_all_gather_tensors;

size_t qwen3moe_all_gather_workspace_size(const qwen3moe_all_gather_shape* shape);
int32_t qwen3moe_all_gather(const qwen3moe_all_gather_shape* shape, const qwen3moe_all_gather_tensors* tensors,
                            void* workspace, size_t workspace_size, qwen3moe_stream stream);

#ifdef __cplusplus
}
#endif
#endif
