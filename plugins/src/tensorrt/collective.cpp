#include "qwen3moe/collective.h"

#include "op.h"

namespace qwen3moe {

namespace {

// Both work on any type and size; what can fail is the group, at run time.
class Collective : public Op {
   public:
    bool takes_activation(ElementType dtype) const override {
        return dtype == ElementType::kFloat32 || Op::takes_activation(dtype);
    }

    size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        sizes_of(attributes, inputs);
        return 0;
    }

   protected:
    ~Collective() = default;
};

class AllReduce final : public Collective {
   public:
    const OpDecl& decl() const override { return kAllReduceDecl; }
    void check(const Attributes&) const override {}
    Sizes fixed_sizes(const Attributes&) const override { return {}; }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const Sizes n = sizes_of(attributes, inputs);
        const qwen3moe_all_reduce_shape shape = {int64_t{n["T"]} * n["H"], kernel_dtype(inputs[0].dtype)};
        const qwen3moe_all_reduce_tensors tensors = {buffers.inputs[0], buffers.outputs[0]};
        expect_success(qwen3moe_all_reduce(&shape, &tensors, buffers.workspace, 0, buffers.stream));
    }
};

class AllGather final : public Collective {
   public:
    const OpDecl& decl() const override { return kAllGatherDecl; }
    ElementType only_activation_of_trt8() const override { return ElementType::kFloat32; }  // for logits, unrounded
    void check(const Attributes& attributes) const override {
        QWEN3MOE_EXPECT(attributes.integer("world_size"), >, 0, "attribute world_size");
    }
    Sizes fixed_sizes(const Attributes& attributes) const override {
        return {{"world_size", attributes.integer("world_size")}};
    }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const Sizes n = sizes_of(attributes, inputs);
        const qwen3moe_all_gather_shape shape = {int64_t{n["M"]} * n["C"], kernel_dtype(inputs[0].dtype),
                                                 attributes.integer("world_size")};
        const qwen3moe_all_gather_tensors tensors = {buffers.inputs[0], buffers.outputs[0]};
        expect_success(qwen3moe_all_gather(&shape, &tensors, buffers.workspace, 0, buffers.stream));
    }
};

const AllReduce all_reduce;
const AllGather all_gather;

}  // namespace

const Op& kAllReduce = all_reduce;
const Op& kAllGather = all_gather;

}  // namespace qwen3moe
