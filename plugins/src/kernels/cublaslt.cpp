#include "cublaslt.h"

#include <dlfcn.h>

#include "status.h"

namespace qwen3moe::cublaslt {

namespace {

// A library that the process has already loaded, from whatever path, is found by these names too.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    return *function != nullptr;
}

bool load(Functions& f) {
    void* library = nullptr;
    for (const char* name : kNames) {
        if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    return library != nullptr && find(library, "cublasLtCreate", &f.create) &&
           find(library, "cublasLtMatmulDescCreate", &f.desc_create) &&
           find(library, "cublasLtMatmulDescSetAttribute", &f.desc_set) &&
           find(library, "cublasLtMatmulDescDestroy", &f.desc_destroy) &&
           find(library, "cublasLtMatrixLayoutCreate", &f.layout_create) &&
           find(library, "cublasLtMatrixLayoutDestroy", &f.layout_destroy) &&
           find(library, "cublasLtMatmulPreferenceCreate", &f.preference_create) &&
           find(library, "cublasLtMatmulPreferenceSetAttribute", &f.preference_set) &&
           find(library, "cublasLtMatmulPreferenceDestroy", &f.preference_destroy) &&
           find(library, "cublasLtMatmulAlgoGetHeuristic", &f.heuristic) && find(library, "cublasLtMatmul", &f.matmul);
}

}  // namespace

const Functions* functions() {
    static Functions loaded;
    static const bool found = load(loaded);
    if (found) return &loaded;
    fail(QWEN3MOE_MISSING_LIBRARY,
         "no libcublasLt.so.13 or .12 is loaded or on the loader's path: pip install nvidia-cublas");
    return nullptr;
}

}  // namespace qwen3moe::cublaslt
