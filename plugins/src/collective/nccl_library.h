// NCCL as the process opened it: its functions, and the check of their results.
#pragma once

#include <string>

#include "failure.h"
#include "nccl_api.h"

namespace qwen3moe::nccl {

// Members carry the names of NCCL's functions without the prefix. Opening throws, naming the path.
struct Library {
    explicit Library(const std::string& path);

    const std::string path;
    decltype(&ncclGetVersion) GetVersion;
    decltype(&ncclGetUniqueId) GetUniqueId;
    decltype(&ncclGetErrorString) GetErrorString;
    decltype(&ncclGetLastError) GetLastError;
    decltype(&ncclCommInitRank) CommInitRank;
    decltype(&ncclCommDestroy) CommDestroy;
    decltype(&ncclCommAbort) CommAbort;
    decltype(&ncclCommGetAsyncError) CommGetAsyncError;
    decltype(&ncclAllReduce) AllReduce;
    decltype(&ncclAllGather) AllGather;

    int version() const;
    void expect_success(ncclResult_t result, const char* call, ncclComm_t comm = nullptr) const;
};

const Library& open_library(const std::string& path);  // throws if another path is open
const Library& opened_library();                       // throws if none is open

}  // namespace qwen3moe::nccl
