#include "op.h"

namespace qwen3moe {

namespace {

enum Input { kQkv, kQNorm, kKNorm, kCosSin, kPositions, kKvCache, kBlockTable, kCuSeqlens, kContextLens };

class PagedAttention final : public Op {
   public:
    const OpDecl& decl() const override { return kPagedAttentionDecl; }

    void check(const Attributes& attributes) const override {
        const int32_t heads = attributes.integer("num_heads"), kv_heads = attributes.integer("num_kv_heads");
        const int32_t head_dim = attributes.integer("head_dim");
        QWEN3MOE_EXPECT(kv_heads, >, 0, "num_kv_heads");
        QWEN3MOE_EXPECT(heads, >, 0, "num_heads");
        QWEN3MOE_EXPECT(heads % kv_heads, ==, 0, "num_heads a multiple of num_kv_heads");
        QWEN3MOE_EXPECT(heads / kv_heads, <=, 16, "query heads to a key/value head");
        QWEN3MOE_EXPECT((head_dim == 64 || head_dim == 128), ==, true, "head_dim 64 or 128, not " << head_dim);
    }

    Sizes fixed_sizes(const Attributes& attributes) const override {
        const int64_t heads = attributes.integer("num_heads"), kv_heads = attributes.integer("num_kv_heads");
        const int64_t head_dim = attributes.integer("head_dim");
        return {{"Hq D", heads * head_dim},
                {"(Hq + 2 Hkv) D", (heads + 2 * kv_heads) * head_dim},
                {"Hkv", kv_heads},
                {"D", head_dim},
                {"2", 2}};
    }

    size_t workspace_size(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const override {
        const qwen3moe_paged_attention_shape shape = shape_of(attributes, inputs);
        return qwen3moe_paged_attention_workspace_size(&shape);
    }

    void run(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
             const Buffers& buffers) const override {
        const qwen3moe_paged_attention_shape shape = shape_of(attributes, inputs);
        const size_t workspace_size = qwen3moe_paged_attention_workspace_size(&shape);
        const qwen3moe_paged_attention_tensors tensors = tensors_of(buffers);
        expect_success(qwen3moe_paged_attention(&shape, &tensors, buffers.workspace, workspace_size, buffers.stream));
    }

   private:
    qwen3moe_paged_attention_shape shape_of(const Attributes& attributes, const std::vector<TensorInfo>& inputs) const {
        const Sizes n = sizes_of(attributes, inputs);
        const int32_t block_size = n["block_size"];
        QWEN3MOE_EXPECT(n["B + 1"], ==, n["B"] + 1, "size of cu_seqlens");
        QWEN3MOE_EXPECT((block_size == 16 || block_size == 32 || block_size == 64), ==, true,
                        "block_size 16, 32 or 64, not " << block_size);
        qwen3moe_paged_attention_shape shape = {};
        shape.dtype = kernel_dtype(inputs[kQkv].dtype);
        shape.num_tokens = n["T"];
        shape.num_seqs = n["B"];
        shape.num_heads = attributes.integer("num_heads");
        shape.num_kv_heads = n["Hkv"];
        shape.head_dim = n["D"];
        shape.num_blocks = n["num_blocks"];
        shape.block_size = block_size;
        shape.max_blocks = n["max_blocks"];
        shape.num_positions = n["P"];
        shape.scale = attributes.real("scale");
        shape.eps = attributes.real("eps");
        return shape;
    }

    static qwen3moe_paged_attention_tensors tensors_of(const Buffers& buffers) {
        const void* const* in = buffers.inputs;
        qwen3moe_paged_attention_tensors tensors = {};
        tensors.qkv = in[kQkv];
        tensors.q_norm_weight = in[kQNorm];
        tensors.k_norm_weight = in[kKNorm];
        tensors.cos_sin_cache = static_cast<const float*>(in[kCosSin]);
        tensors.positions = static_cast<const int32_t*>(in[kPositions]);
        // Written in place: kv_cache_out is this memory where TensorRT knows of aliases, and no output where it does
        // not.
        tensors.kv_cache = const_cast<void*>(in[kKvCache]);
        tensors.block_table = static_cast<const int32_t*>(in[kBlockTable]);
        tensors.cu_seqlens = static_cast<const int32_t*>(in[kCuSeqlens]);
        tensors.context_lens = static_cast<const int32_t*>(in[kContextLens]);
        tensors.out = buffers.outputs[0];
        return tensors;
    }
};

const PagedAttention op;

}  // namespace

const Op& kPagedAttention = op;

}  // namespace qwen3moe
