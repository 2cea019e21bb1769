#include "op.h"

namespace qwen3moe {

namespace {

enum Input { kHidden, kRouterLogits, kGateUp, kDown, kExpertMap, kPositions, kCuSeqlens, kLoad };

class MoE : public Op {
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
        const qwen3moe_moe_tensors tensors = tensors_of(buffers);
        expect_success(qwen3moe_moe(&shape, &tensors, buffers.workspace, workspace_size, buffers.stream));
    }

   protected:
    virtual qwen3moe_moe_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
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

    virtual qwen3moe_moe_tensors tensors_of(const Buffers& buffers) const {
        const void* const* in = buffers.inputs;
        qwen3moe_moe_tensors tensors = {};
        tensors.hidden = in[kHidden];
        tensors.router_logits = in[kRouterLogits];
        tensors.gate_up = in[kGateUp];
        tensors.down = in[kDown];
        tensors.expert_map = static_cast<const int32_t*>(in[kExpertMap]);
        tensors.out = buffers.outputs[0];
        return tensors;
    }
};

class BalancedMoE final : public MoE {
   public:
    const OpDecl& decl() const override { return kBalancedMoEDecl; }

   protected:
    qwen3moe_moe_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        const Sizes n = sizes_of(attributes, inputs);
        QWEN3MOE_EXPECT(n["R"], >, 0, "rows of expert_map");
        QWEN3MOE_EXPECT(n["R"], <=, 32, "rows of expert_map");
        qwen3moe_moe_shape shape = MoE::shape_of(attributes, inputs);
        shape.map_rows = n["R"];
        shape.num_seqs = n["B + 1"] - 1;
        return shape;
    }

    qwen3moe_moe_tensors tensors_of(const Buffers& buffers) const override {
        const void* const* in = buffers.inputs;
        qwen3moe_moe_tensors tensors = MoE::tensors_of(buffers);
        tensors.positions = static_cast<const int32_t*>(in[kPositions]);
        tensors.cu_seqlens = static_cast<const int32_t*>(in[kCuSeqlens]);
        // Written in place, as kv_cache is.
        tensors.load = static_cast<int32_t*>(const_cast<void*>(in[kLoad]));
        return tensors;
    }
};

const MoE op;
const BalancedMoE balanced_op;

}  // namespace

const Op& kMoE = op;
const Op& kBalancedMoE = balanced_op;

}  // namespace qwen3moe
