#include "op.h"
#include "qwen3moe/collective.h"

namespace qwen3moe {

namespace {

// RMSNorm and AddRMSNorm are one kernel, with and without the residual. AllReduceAddRMSNorm takes the same arguments.
class RMSNorm final : public Op {
   public:
    using Kernel = decltype(&qwen3moe_rms_norm);
    constexpr RMSNorm(const OpDecl& decl, Kernel kernel) : decl_(decl), kernel_(kernel) {}

    const OpDecl& decl() const override { return decl_; }
    void check(const Attributes& attributes) const override {
        QWEN3MOE_EXPECT(attributes.real("eps"), >, 0.0f, "attribute eps");
    }
    Sizes fixed_sizes(const Attributes&) const override { return {}; }

    size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        const qwen3moe_rms_norm_shape shape = shape_of(attributes, inputs);
        return qwen3moe_rms_norm_workspace_size(&shape);
    }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const qwen3moe_rms_norm_shape shape = shape_of(attributes, inputs);
        const void* const* in = buffers.inputs;
        qwen3moe_rms_norm_tensors tensors = {};
        tensors.x = in[0];
        tensors.residual = has_residual() ? in[1] : nullptr;
        tensors.weight = has_residual() ? in[2] : in[1];
        tensors.out = buffers.outputs[0];
        tensors.residual_out = has_residual() ? buffers.outputs[1] : nullptr;
        expect_success(kernel_(&shape, &tensors, buffers.workspace, 0, buffers.stream));
    }

   private:
    bool has_residual() const { return decl_.num_inputs() == 3; }

    qwen3moe_rms_norm_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
        const Sizes n = sizes_of(attributes, inputs);
        QWEN3MOE_EXPECT(n["H"] % 8, ==, 0, "hidden size " << n["H"]);
        QWEN3MOE_EXPECT(n["H"], <=, 16384, "hidden size");
        qwen3moe_rms_norm_shape shape = {};
        shape.dtype = kernel_dtype(inputs[0].dtype);
        shape.num_tokens = n["T"];
        shape.hidden_size = n["H"];
        shape.eps = attributes.real("eps");
        return shape;
    }

    const OpDecl& decl_;
    const Kernel kernel_;
};

constexpr RMSNorm rms_norm(kRMSNormDecl, &qwen3moe_rms_norm), add_rms_norm(kAddRMSNormDecl, &qwen3moe_rms_norm),
    all_reduce_add_rms_norm(kAllReduceAddRMSNormDecl, &qwen3moe_all_reduce_add_rms_norm);

}  // namespace

const Op& kRMSNorm = rms_norm;
const Op& kAddRMSNorm = add_rms_norm;
const Op& kAllReduceAddRMSNorm = all_reduce_add_rms_norm;

}  // namespace qwen3moe
