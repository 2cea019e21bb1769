#include "nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <mutex>

namespace qwen3moe::nccl {

namespace {

constexpr int kMinVersion = 21400;  // 2.14: the first with ncclGetLastError and an abort that ends graph launches

template <typename Function>
void find(void* library, const std::string& path, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, path + ": not an NCCL library: no " + name);
}

std::mutex opening;
std::unique_ptr<Library> opened;

}  // namespace

// NVLink multicast (NVLS) stays off: a process that dies in it can leave the GPUs of the host unusable.
// NCCL reads the variable once, at its first communicator, so it is set before NCCL is there.
Library::Library(const std::string& path) : path(path) {
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, std::string("NCCL: ") + dlerror());
    find(library, path, "ncclGetVersion", GetVersion);
    if (version() < kMinVersion) {
        throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, path + ": NCCL version: expected at least " +
                                                       std::to_string(kMinVersion) + ", got " +
                                                       std::to_string(version()));
    }
    find(library, path, "ncclGetUniqueId", GetUniqueId);
    find(library, path, "ncclGetErrorString", GetErrorString);
    find(library, path, "ncclGetLastError", GetLastError);
    find(library, path, "ncclCommInitRank", CommInitRank);
    find(library, path, "ncclCommDestroy", CommDestroy);
    find(library, path, "ncclCommAbort", CommAbort);
    find(library, path, "ncclCommGetAsyncError", CommGetAsyncError);
    find(library, path, "ncclAllReduce", AllReduce);
    find(library, path, "ncclAllGather", AllGather);
}

int Library::version() const {
    int version = 0;
    GetVersion(&version);
    return version;
}

void Library::expect_success(ncclResult_t result, const char* call, ncclComm_t comm) const {
    if (result == ncclSuccess) return;
    throw Failure(QWEN3MOE_COMMUNICATOR_ERROR,
                  std::string(call) + ": " + GetErrorString(result) + ": " + GetLastError(comm));
}

const Library& open_library(const std::string& path) {
    const std::lock_guard<std::mutex> lock(opening);
    if (opened == nullptr) opened = std::make_unique<Library>(path);
    if (opened->path != path) {
        throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, path + ": this process has NCCL open as " + opened->path);
    }
    return *opened;
}

const Library& opened_library() {
    const std::lock_guard<std::mutex> lock(opening);
    if (opened == nullptr) throw Failure(QWEN3MOE_COMMUNICATOR_ERROR, "qwen3moe_nccl_open was not called");
    return *opened;
}

}  // namespace qwen3moe::nccl
