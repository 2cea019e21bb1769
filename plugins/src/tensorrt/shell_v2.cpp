// libqwen3moe_plugins_trt8: the operators as IPluginV2DynamicExt plugins, for TensorRT 8.6.
//
// Node: attributes plugin_namespace "qwen3moe" and plugin_version "1", inputs and attributes as in
// qwen3moe_plugins/ops.py, activations fp16 (8.6 has no bf16) or, of AllGather, fp32. 8.6 knows no aliased outputs:
// PagedAttention has the one output `out`, and writes the memory bound to its input kv_cache in place.
#include "descriptors.h"
#include "interface_v2.h"

namespace qwen3moe {

namespace {

class PluginV2 final : public trt8::IPluginV2DynamicExt {
   public:
    PluginV2(const Op& op, Attributes attributes) : op_(op), attributes_(std::move(attributes)) {}

    trt8::IPluginV2DynamicExt* clone() const noexcept override {
        return guarded(name(), "clone", static_cast<PluginV2*>(nullptr),
                       [&] { return new PluginV2(op_, attributes_); });
    }
    void destroy() noexcept override { delete this; }
    int32_t initialize() noexcept override { return kOk; }
    void terminate() noexcept override {}

    const char* getPluginType() const noexcept override { return name(); }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    void setPluginNamespace(const char*) noexcept override {}  // the operators have one namespace

    // Outputs that alias an input come last, and do not exist here.
    int32_t getNbOutputs() const noexcept override {
        return static_cast<int32_t>(decl().outputs.size() - decl().aliases.size());
    }

    trt8::DataType getOutputDataType(int32_t output, const trt8::DataType* input_types,
                                     int32_t) const noexcept override {
        return output_type(decl(), output, input_types[0]);
    }

    trt8::DimsExprs getOutputDimensions(int32_t output, const trt8::DimsExprs* inputs, int32_t num_inputs,
                                        trt8::IExprBuilder& builder) noexcept override {
        return guarded(name(), "getOutputDimensions", trt8::DimsExprs{-1, {}}, [&] {
            expect_ranks(decl(), inputs, num_inputs);
            return output_shape<trt8::DimensionOperation>(op_, attributes_, output, inputs, builder);
        });
    }

    bool supportsFormatCombination(int32_t position, const trt8::PluginTensorDesc* tensors, int32_t num_inputs,
                                   int32_t) noexcept override {
        return guarded(name(), "supportsFormatCombination", false, [&] {
            QWEN3MOE_EXPECT(num_inputs, ==, decl().num_inputs(), "number of inputs");
            return takes(decl(), position, tensors[position], op_.only_activation_of_trt8());
        });
    }

    // 8.6 takes no failure from here; enqueue makes the same checks.
    void configurePlugin(const trt8::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                         const trt8::DynamicPluginTensorDesc*, int32_t) noexcept override {
        guarded(name(), "configurePlugin", kFailed, [&] {
            op_.workspace_size(attributes_, largest_tensor_infos(inputs, num_inputs));
            return kOk;
        });
    }

    size_t getWorkspaceSize(const trt8::PluginTensorDesc* inputs, int32_t num_inputs, const trt8::PluginTensorDesc*,
                            int32_t) const noexcept override {
        return guarded(name(), "getWorkspaceSize", size_t{0},
                       [&] { return op_.workspace_size(attributes_, tensor_infos(inputs, num_inputs)); });
    }

    int32_t enqueue(const trt8::PluginTensorDesc* input_descs, const trt8::PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void* workspace, qwen3moe_stream stream) noexcept override {
        return guarded(name(), "enqueue", kFailed, [&] {
            op_.run(attributes_, tensor_infos(input_descs, decl().num_inputs()), {inputs, outputs, workspace, stream});
            return kOk;
        });
    }

    size_t getSerializationSize() const noexcept override { return attributes_.serialized_size(); }
    void serialize(void* buffer) const noexcept override { attributes_.serialize(buffer); }

   private:
    static constexpr int32_t kOk = 0, kFailed = 1;

    const OpDecl& decl() const { return op_.decl(); }
    const char* name() const { return decl().name; }

    const Op& op_;
    const Attributes attributes_;
};

class CreatorV2 final : public trt8::IPluginCreator {
   public:
    explicit CreatorV2(const Op& op)
        : op_(op),
          fields_(plugin_fields<trt8::PluginField>(op.decl(), nullptr)),
          collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

    trt8::IPluginV2* createPlugin(const char*, const trt8::PluginFieldCollection* fields) noexcept override {
        return create("createPlugin",
                      [&] { return attributes_from_fields<trt8::PluginFieldType>(op_.decl(), fields); });
    }

    trt8::IPluginV2* deserializePlugin(const char*, const void* data, size_t size) noexcept override {
        return create("deserializePlugin", [&] { return Attributes::deserialize(op_.decl(), data, size); });
    }

    const trt8::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return op_.decl().name; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    void setPluginNamespace(const char*) noexcept override {}

   private:
    template <typename MakeAttributes>
    trt8::IPluginV2* create(const char* method, MakeAttributes make_attributes) noexcept {
        return guarded(getPluginName(), method, static_cast<PluginV2*>(nullptr), [&] {
            Attributes attributes = make_attributes();
            op_.check(attributes);
            return new PluginV2(op_, std::move(attributes));
        });
    }

    const Op& op_;
    const std::vector<trt8::PluginField> fields_;
    const trt8::PluginFieldCollection collection_;
};

}  // namespace

}  // namespace qwen3moe

// Both must be exported for TensorRT to load the library.
extern "C" qwen3moe::trt8::IPluginCreator* const* getPluginCreators(int32_t& num_creators) {
    using namespace qwen3moe;
    static CreatorV2 paged_attention(kPagedAttention), moe(kMoE), balanced_moe(kBalancedMoE), rms_norm(kRMSNorm),
        add_rms_norm(kAddRMSNorm), linear(kLinear), linear_float32(kLinearFloat32), all_reduce(kAllReduce),
        all_gather(kAllGather), all_reduce_add_rms_norm(kAllReduceAddRMSNorm);
    static trt8::IPluginCreator* const creators[] = {
        &paged_attention, &moe,        &balanced_moe,           &rms_norm, &add_rms_norm, &linear, &linear_float32,
        &all_reduce,      &all_gather, &all_reduce_add_rms_norm};
    num_creators = static_cast<int32_t>(std::size(creators));
    return creators;
}

extern "C" void setLoggerFinder(void*) {}
