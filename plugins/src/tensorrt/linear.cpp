#include "op.h"

namespace qwen3moe {

namespace {

// Linear and LinearFloat32 are one product, rounded or not.
class Linear final : public Op {
   public:
    explicit constexpr Linear(const OpDecl& decl) : decl_(decl) {}

    const OpDecl& decl() const override { return decl_; }
    void check(const Attributes&) const override {}
    Sizes fixed_sizes(const Attributes&) const override { return {}; }

    size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        const qwen3moe_linear_shape shape = shape_of(attributes, inputs);
        return qwen3moe_linear_workspace_size(&shape);
    }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const qwen3moe_linear_shape shape = shape_of(attributes, inputs);
        const size_t workspace_size = qwen3moe_linear_workspace_size(&shape);
        const qwen3moe_linear_tensors tensors = {buffers.inputs[0], buffers.inputs[1], buffers.outputs[0]};
        expect_success(qwen3moe_linear(&shape, &tensors, buffers.workspace, workspace_size, buffers.stream));
    }

   private:
    qwen3moe_linear_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
        const Sizes n = sizes_of(attributes, inputs);
        QWEN3MOE_EXPECT(n["K"] % 8, ==, 0, "columns of weight " << n["K"]);
        QWEN3MOE_EXPECT(n["N"] % 8, ==, 0, "rows of weight " << n["N"]);
        qwen3moe_linear_shape shape = {};
        shape.dtype = kernel_dtype(inputs[0].dtype);
        shape.out_float32 = decl_.outputs[0].dtype == DeclaredType::kFloat32;
        shape.num_tokens = n["T"];
        shape.in_features = n["K"];
        shape.out_features = n["N"];
        return shape;
    }

    const OpDecl& decl_;
};

constexpr Linear linear(kLinearDecl), linear_float32(kLinearFloat32Decl);

}  // namespace

const Op& kLinear = linear;
const Op& kLinearFloat32 = linear_float32;

}  // namespace qwen3moe
