#include "op.h"

namespace qwen3moe {

namespace {

enum Input { kHidden, kRouterLogits, kGateUp, kDown, kExpertMap };

class MoE final : public Op {
   public:
    const OpDecl& decl() const override { return kMoEDecl; }

    void check(const Attributes& attributes) const override {
        QWEN3MOE_EXPECT(attributes.integer("top_k"), >, 0, "attribute");
        QWEN3MOE_EXPECT(attributes.integer("top_k"), <=, 16, "attribute");
        QWEN3MOE_EXPECT(attributes.integer("norm_topk_prob"), <=, 1, "attribute");
    }

    Sizes fixed_sizes(const Attributes&) const override { return {}; }

    size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        const qwen3moe_moe_shape shape = shape_of(attributes, inputs);
        return qwen3moe_moe_workspace_size(&shape);
    }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const qwen3moe_moe_shape shape = shape_of(attributes, inputs);
        const size_t workspace_size = qwen3moe_moe_workspace_size(&shape);
        const void* const* in = buffers.inputs;
        const qwen3moe_moe_tensors tensors = {
            in[kHidden],       in[kRouterLogits], in[kGateUp], in[kDown], static_cast<const int32_t*>(in[kExpertMap]),
            buffers.outputs[0]};
        expect_success(qwen3moe_moe(&shape, &tensors, buffers.workspace, workspace_size, buffers.stream));
    }

   private:
    qwen3moe_moe_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
        const Sizes n = sizes_of(attributes, inputs);
        QWEN3MOE_EXPECT(n["2 I"], ==, 2 * n["I"], "rows of gate_up");
        QWEN3MOE_EXPECT(n["H"] % 64, ==, 0, "hidden size " << n["H"]);
        QWEN3MOE_EXPECT(n["I"] % 8, ==, 0, "expert width " << n["I"]);
        QWEN3MOE_EXPECT(n["E"], <=, 512, "experts");
        QWEN3MOE_EXPECT(attributes.integer("top_k"), <=, n["E"], "experts a token");
        qwen3moe_moe_shape shape = {};
        shape.dtype = kernel_dtype(inputs[kHidden].dtype);
        shape.num_tokens = n["T"];
        shape.hidden_size = n["H"];
        shape.intermediate_size = n["I"];
        shape.num_experts = n["E"];
        shape.num_local_experts = n["E_local"];
        shape.top_k = attributes.integer("top_k");
        shape.norm_topk_prob = attributes.integer("norm_topk_prob");
        return shape;
    }
};

const MoE op;

}  // namespace

const Op& kMoE = op;

}  // namespace qwen3moe
