#include "linear_cublas.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "cublaslt.h"
#include "linear_config.h"
#include "status.h"

// Returns CUDA_ERROR from the enclosing function unless `call` is CUBLAS_STATUS_SUCCESS.
#define QWEN3MOE_CHECK_CUBLAS(call)                                                     \
    do {                                                                                \
        const int status = (call);                                                      \
        if (status != cublaslt::kSuccess) {                                             \
            std::ostringstream message;                                                 \
            message << __FILE__ << ":" << __LINE__ << ": " #call ": status " << status; \
            return fail(QWEN3MOE_CUDA_ERROR, message.str());                            \
        }                                                                               \
    } while (0)

namespace qwen3moe::linear {

namespace {

constexpr uint32_t kAlignment = 16;  // bytes: of every tensor, as linear.cu checks

// Column-major, as cuBLAS has it: out^T [N, T] = weight [N, K] @ x^T [K, T], where weight is transposed [K, N] memory.
class Product {
   public:
    int32_t prepare(const cublaslt::Functions& f, cublaslt::Handle handle, const qwen3moe_linear_shape& shape);
    int32_t run(const cublaslt::Functions& f, cublaslt::Handle handle, const qwen3moe_linear_tensors& tensors,
                void* workspace, cudaStream_t stream) const;

   private:
    int32_t choose(const cublaslt::Functions& f, cublaslt::Handle handle, cublaslt::Preference preference);

    // Kept for the life of the process, as the algorithms are.
    cublaslt::MatmulDesc desc_ = nullptr;
    cublaslt::Layout weight_ = nullptr, x_ = nullptr, out_ = nullptr;
    cublaslt::Heuristic best_ = {};
};

int32_t Product::prepare(const cublaslt::Functions& f, cublaslt::Handle handle, const qwen3moe_linear_shape& shape) {
    const int type = shape.dtype == QWEN3MOE_BF16 ? CUDA_R_16BF : CUDA_R_16F;
    const int out_type = shape.out_float32 ? CUDA_R_32F : type;
    const int64_t k = shape.in_features, n = shape.out_features, t = shape.num_tokens;
    QWEN3MOE_CHECK_CUBLAS(f.desc_create(&desc_, cublaslt::kComputeFloat32, CUDA_R_32F));
    QWEN3MOE_CHECK_CUBLAS(
        f.desc_set(desc_, cublaslt::kDescTransA, &cublaslt::kTranspose, sizeof(cublaslt::kTranspose)));
    QWEN3MOE_CHECK_CUBLAS(f.layout_create(&weight_, type, k, n, k));
    QWEN3MOE_CHECK_CUBLAS(f.layout_create(&x_, type, k, t, k));
    QWEN3MOE_CHECK_CUBLAS(f.layout_create(&out_, out_type, n, t, n));
    cublaslt::Preference preference = nullptr;
    QWEN3MOE_CHECK_CUBLAS(f.preference_create(&preference));
    const int32_t chosen = choose(f, handle, preference);
    QWEN3MOE_CHECK_CUBLAS(f.preference_destroy(preference));
    return chosen;
}

int32_t Product::choose(const cublaslt::Functions& f, cublaslt::Handle handle, cublaslt::Preference preference) {
    QWEN3MOE_CHECK_CUBLAS(
        f.preference_set(preference, cublaslt::kPreferenceWorkspace, &kCublasWorkspace, sizeof(kCublasWorkspace)));
    for (const int attribute : cublaslt::kPreferenceAlignments) {
        QWEN3MOE_CHECK_CUBLAS(f.preference_set(preference, attribute, &kAlignment, sizeof(kAlignment)));
    }
    int found = 0;
    QWEN3MOE_CHECK_CUBLAS(f.heuristic(handle, desc_, weight_, x_, out_, out_, preference, 1, &best_, &found));
    QWEN3MOE_CHECK_ARG(found, ==, 1);
    return QWEN3MOE_SUCCESS;
}

int32_t Product::run(const cublaslt::Functions& f, cublaslt::Handle handle, const qwen3moe_linear_tensors& tensors,
                     void* workspace, cudaStream_t stream) const {
    const float one = 1.0f, zero = 0.0f;
    QWEN3MOE_CHECK_CUBLAS(f.matmul(handle, desc_, &one, tensors.weight, weight_, tensors.x, x_, &zero, tensors.out,
                                   out_, tensors.out, out_, &best_.algorithm, workspace, kCublasWorkspace, stream));
    return QWEN3MOE_SUCCESS;
}

// The products of one device by shape. At most as many as there are token counts up to a plan's largest, times the
// model's four weight shapes: some MB.
class Products {
   public:
    int32_t find(const cublaslt::Functions& f, const qwen3moe_linear_shape& shape, const Product** product) {
        if (handle_ == nullptr) QWEN3MOE_CHECK_CUBLAS(f.create(&handle_));
        std::unique_ptr<Product>& slot =
            by_shape_[Key{shape.dtype, shape.out_float32, shape.num_tokens, shape.in_features, shape.out_features}];
        if (slot == nullptr) {
            auto fresh = std::make_unique<Product>();
            if (const int32_t status = fresh->prepare(f, handle_, shape)) return status;
            slot = std::move(fresh);
        }
        *product = slot.get();
        return QWEN3MOE_SUCCESS;
    }
    cublaslt::Handle handle() const { return handle_; }

   private:
    using Key = std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>;
    cublaslt::Handle handle_ = nullptr;
    std::map<Key, std::unique_ptr<Product>> by_shape_;
};

}  // namespace

int32_t run_cublas(const Device& device, const qwen3moe_linear_shape& shape, const qwen3moe_linear_tensors& tensors,
                   void* workspace, cudaStream_t stream) {
    const cublaslt::Functions* f = cublaslt::functions();
    if (f == nullptr) return QWEN3MOE_MISSING_LIBRARY;
    static std::mutex mutex;
    static std::map<int, Products> by_device;
    const std::lock_guard<std::mutex> lock(mutex);
    Products& products = by_device[device.ordinal];
    const Product* product = nullptr;
    if (const int32_t status = products.find(*f, shape, &product)) return status;
    return product->run(*f, products.handle(), tensors, workspace, stream);
}

}  // namespace qwen3moe::linear
