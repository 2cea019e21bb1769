#include "op.h"

#include <limits>
#include <string>

namespace qwen3moe {

const int64_t* Sizes::find(std::string_view symbol) const {
    for (const auto& [name, size] : sizes_) {
        if (name == symbol) return &size;
    }
    return nullptr;
}

int32_t Sizes::operator[](std::string_view symbol) const {
    const int64_t* size = find(symbol);
    if (size == nullptr) throw std::logic_error("no tensor has the dimension " + std::string(symbol));
    QWEN3MOE_EXPECT(*size, <=, std::numeric_limits<int32_t>::max(), "size of " << symbol);
    return static_cast<int32_t>(*size);
}

void Sizes::bind(const TensorDecl& decl, int32_t axis, int64_t size) {
    const char* symbol = decl.shape[axis];
    QWEN3MOE_EXPECT(size, >=, 0, decl.name << ": dimension " << axis << ", " << symbol);
    const int64_t* bound = find(symbol);
    if (bound == nullptr) {
        sizes_.emplace_back(symbol, size);
        return;
    }
    QWEN3MOE_EXPECT(size, ==, *bound, decl.name << ": dimension " << axis << ", " << symbol);
}

void Sizes::bind(const std::vector<TensorDecl>& decls, const std::vector<TensorInfo>& tensors) {
    QWEN3MOE_EXPECT(tensors.size(), ==, decls.size(), "number of tensors");
    for (size_t i = 0; i < decls.size(); ++i) {
        QWEN3MOE_EXPECT(tensors[i].rank, ==, decls[i].rank(), decls[i].name << ": rank");
        for (int32_t axis = 0; axis < decls[i].rank(); ++axis) bind(decls[i], axis, tensors[i].shape[axis]);
    }
}

Sizes Op::sizes_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
    Sizes sizes = fixed_sizes(attributes);
    sizes.bind(decl().inputs, inputs);
    return sizes;
}

bool takes(const TensorDecl& decl, ElementType dtype, ElementType activation) {
    switch (decl.dtype) {
        case DeclaredType::kFloat32:
            return dtype == ElementType::kFloat32;
        case DeclaredType::kInt32:
            return dtype == ElementType::kInt32;
        case DeclaredType::kActivation:
            return dtype == activation;
    }
    return false;
}

int32_t kernel_dtype(ElementType activation) {
    if (activation == ElementType::kBf16) return QWEN3MOE_BF16;
    if (activation == ElementType::kFp16) return QWEN3MOE_FP16;
    if (activation == ElementType::kFloat32) return QWEN3MOE_FP32;
    throw std::invalid_argument("activations must be bf16, fp16 or fp32");
}

void expect_success(int32_t status) {
    if (status != QWEN3MOE_SUCCESS) throw std::runtime_error(qwen3moe_last_error());
}

}  // namespace qwen3moe
