// One operator behind every TensorRT version's shell: the shells turn descriptors into `TensorInfo`s and attributes,
// and the operator checks them against its declaration and calls the C API. Knows the kernels, not TensorRT.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "attributes.h"
#include "declarations.h"
#include "guard.h"
#include "qwen3moe/kernels.h"

namespace qwen3moe {

enum class ElementType { kFloat32, kInt32, kBf16, kFp16, kOther };

struct TensorInfo {
    ElementType dtype;
    int32_t rank;
    std::array<int64_t, 8> shape;
};

// What each symbol of a declaration's shapes stands for in one call. A symbol has one size throughout.
class Sizes {
   public:
    Sizes(std::initializer_list<std::pair<std::string_view, int64_t>> sizes) : sizes_(sizes) {}

    // Binds every symbol of `decls`. Throws on another rank, or a size other than the one already bound.
    void bind(const std::vector<TensorDecl>& decls, const std::vector<TensorInfo>& tensors);

    bool has(std::string_view symbol) const { return find(symbol) != nullptr; }
    int32_t operator[](std::string_view symbol) const;  // throws past 32 bits, which the C API has

   private:
    const int64_t* find(std::string_view symbol) const;
    void bind(const TensorDecl& decl, int32_t axis, int64_t size);

    std::vector<std::pair<std::string_view, int64_t>> sizes_;
};

struct Buffers {
    const void* const* inputs;
    void* const* outputs;
    void* workspace;
    qwen3moe_stream stream;
};

// Input 0 of every operator is an activation, and all activations of a call have its type.
class Op {
   public:
    virtual const OpDecl& decl() const = 0;
    virtual bool takes_activation(ElementType dtype) const {
        return dtype == ElementType::kBf16 || dtype == ElementType::kFp16;
    }
    // TensorRT 8.6 converts activations as it finds fastest, so there each operator takes one type. It has no bf16.
    virtual ElementType only_activation_of_trt8() const { return ElementType::kFp16; }
    // Throws if no kernel can take the attributes, whatever the tensors.
    virtual void check(const Attributes& attributes) const = 0;
    // The symbols whose sizes the attributes fix.
    virtual Sizes fixed_sizes(const Attributes& attributes) const = 0;
    // Of the inputs' shapes, all known. Throws if no kernel can take them.
    virtual size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const = 0;
    virtual void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
                     const Buffers& buffers) const = 0;

   protected:
    Sizes sizes_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const;
    ~Op() = default;
};

// Whether `dtype` is what `decl` asks for, given the activation type of the call.
bool takes(const TensorDecl& decl, ElementType dtype, ElementType activation);

// The activation dtype as the C API counts it.
int32_t kernel_dtype(ElementType activation);

// Throws the library's own message if `status` is an error.
void expect_success(int32_t status);

extern const Op& kPagedAttention;
extern const Op& kMoE;
extern const Op& kBalancedMoE;
extern const Op& kRMSNorm;
extern const Op& kAddRMSNorm;
extern const Op& kLinear;
extern const Op& kLinearFloat32;
extern const Op& kAllReduce;
extern const Op& kAllGather;
extern const Op& kAllReduceAddRMSNorm;

}  // namespace qwen3moe
