// Prints what the used part of NCCL's API looks like to a caller, as lines `name value`. test_nccl_api.py compiles it
// against our declarations; against the official header it prints the same lines:
//   g++ -include nccl.h -I<NCCL>/include -I<CUDA>/include nccl_probe.cpp
#include <cstddef>
#include <cstdio>
#include <initializer_list>
#include <type_traits>

#ifdef OURS
using namespace qwen3moe::nccl;
#endif

// A parameter or result by its size, and p for a pointer, e for an enumeration, s for a structure.
template <typename T>
void print_type() {
    const char* kind = std::is_pointer_v<T> ? "p" : std::is_enum_v<T> ? "e" : std::is_class_v<T> ? "s" : "";
    std::printf(" %zu%s", sizeof(T), kind);
}

template <typename Result, typename... Parameters>
void print_signature(const char* name, Result (*)(Parameters...)) {
    std::printf("%s", name);
    print_type<Result>();
    (print_type<Parameters>(), ...);
    std::printf("\n");
}

#define SIGNATURE(function) print_signature(#function, static_cast<decltype(&function)>(nullptr))
#define VALUE(name) std::printf(#name " %d\n", static_cast<int>(name))

int main() {
    for (const size_t bytes : {sizeof(ncclUniqueId), sizeof(ncclComm_t), alignof(ncclUniqueId)}) {
        std::printf("size %zu\n", bytes);
    }
    VALUE(NCCL_UNIQUE_ID_BYTES);
    VALUE(ncclSuccess);
    VALUE(ncclInProgress);
    VALUE(ncclSum);
    VALUE(ncclInt8);
    VALUE(ncclFloat16);
    VALUE(ncclFloat32);
    VALUE(ncclBfloat16);
    SIGNATURE(ncclGetVersion);
    SIGNATURE(ncclGetUniqueId);
    SIGNATURE(ncclGetErrorString);
    SIGNATURE(ncclGetLastError);
    SIGNATURE(ncclCommInitRank);
    SIGNATURE(ncclCommDestroy);
    SIGNATURE(ncclCommAbort);
    SIGNATURE(ncclCommGetAsyncError);
    SIGNATURE(ncclAllReduce);
    SIGNATURE(ncclAllGather);
}
