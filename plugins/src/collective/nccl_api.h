// The part of NCCL's API that is used, declared by ourselves under its names: NCCL is opened at run time, and its
// headers need not be there. tests/plugins/test_nccl_api.py pins what these must share with the official header.
#pragma once

#include <cstddef>

struct CUstream_st;

namespace qwen3moe::nccl {

constexpr int NCCL_UNIQUE_ID_BYTES = 128;
struct ncclUniqueId {
    char internal[NCCL_UNIQUE_ID_BYTES];
};

using ncclComm_t = struct ncclComm*;
using cudaStream_t = CUstream_st*;

enum ncclResult_t { ncclSuccess = 0, ncclInProgress = 7 };
enum ncclRedOp_t { ncclSum = 0 };
enum ncclDataType_t { ncclInt8 = 0, ncclFloat16 = 6, ncclFloat32 = 7, ncclBfloat16 = 9 };

extern "C" {
ncclResult_t ncclGetVersion(int* version);
ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
const char* ncclGetErrorString(ncclResult_t result);
const char* ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error);
ncclResult_t ncclAllReduce(const void* x, void* out, size_t count, ncclDataType_t dtype, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void* x, void* out, size_t count, ncclDataType_t dtype, ncclComm_t comm,
                           cudaStream_t stream);
}

}  // namespace qwen3moe::nccl
