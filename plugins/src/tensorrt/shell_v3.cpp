// libqwen3moe_plugins: the operators as IPluginV3 plugins, for TensorRT 10.3 to 11 and TensorRT-RTX.
//
// Node: domain and attribute plugin_namespace "qwen3moe", plugin_version "1", inputs, outputs and attributes as in
// qwen3moe_plugins/ops.py. kv_cache_out aliases kv_cache, so build with PreviewFeature.ALIASED_PLUGIN_IO_10_03.
#ifdef QWEN3MOE_OFFICIAL_TENSORRT_HEADERS
#include <NvInferRuntime.h>
namespace qwen3moe {
namespace trt = nvinfer1;
}
#else
#include "interface_v3.h"
#endif

#include "descriptors.h"

namespace qwen3moe {

namespace {

class PluginV3 final : public trt::IPluginV3,
                       public trt::IPluginV3OneCore,
                       public trt::IPluginV3OneBuildV2,
                       public trt::IPluginV3OneRuntime {
   public:
    PluginV3(const Op& op, Attributes attributes) : op_(op), attributes_(std::move(attributes)) {}

    trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override {
        switch (type) {
            case trt::PluginCapabilityType::kCORE:
                return static_cast<trt::IPluginV3OneCore*>(this);
            case trt::PluginCapabilityType::kBUILD:
                return static_cast<trt::IPluginV3OneBuildV2*>(this);
            case trt::PluginCapabilityType::kRUNTIME:
                return static_cast<trt::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    trt::IPluginV3* clone() noexcept override {
        return guarded(name(), "clone", static_cast<PluginV3*>(nullptr),
                       [&] { return new PluginV3(op_, attributes_); });
    }

    const char* getPluginName() const noexcept override { return name(); }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(decl().outputs.size()); }

    int32_t getAliasedInput(int32_t output) noexcept override { return decl().aliased_input(output); }

    int32_t getOutputDataTypes(trt::DataType* output_types, int32_t num_outputs, const trt::DataType* input_types,
                               int32_t num_inputs) const noexcept override {
        return guarded(name(), "getOutputDataTypes", kFailed, [&] {
            QWEN3MOE_EXPECT(num_inputs, ==, decl().num_inputs(), "number of inputs");
            for (int32_t i = 0; i < num_outputs; ++i) output_types[i] = output_type(decl(), i, input_types[0]);
            return kOk;
        });
    }

    int32_t getOutputShapes(const trt::DimsExprs* inputs, int32_t num_inputs, const trt::DimsExprs*, int32_t,
                            trt::DimsExprs* outputs, int32_t num_outputs,
                            trt::IExprBuilder& builder) noexcept override {
        return guarded(name(), "getOutputShapes", kFailed, [&] {
            expect_ranks(decl(), inputs, num_inputs);
            for (int32_t i = 0; i < num_outputs; ++i) {
                outputs[i] = output_shape<trt::DimensionOperation>(op_, attributes_, i, inputs, builder);
            }
            return kOk;
        });
    }

    bool supportsFormatCombination(int32_t position, const trt::DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                   int32_t) noexcept override {
        return guarded(name(), "supportsFormatCombination", false, [&] {
            QWEN3MOE_EXPECT(num_inputs, ==, decl().num_inputs(), "number of inputs");
            const ElementType activation = element_type(tensors[0].desc.type);
            return op_.takes_activation(activation) && takes(decl(), position, tensors[position].desc, activation);
        });
    }

    int32_t configurePlugin(const trt::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                            const trt::DynamicPluginTensorDesc*, int32_t) noexcept override {
        return guarded(name(), "configurePlugin", kFailed, [&] {
            op_.workspace_size(attributes_, largest_tensor_infos(inputs, num_inputs));
            return kOk;
        });
    }

    size_t getWorkspaceSize(const trt::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                            const trt::DynamicPluginTensorDesc*, int32_t) const noexcept override {
        return guarded(name(), "getWorkspaceSize", size_t{0},
                       [&] { return op_.workspace_size(attributes_, largest_tensor_infos(inputs, num_inputs)); });
    }

    int32_t onShapeChange(const trt::PluginTensorDesc* inputs, int32_t num_inputs, const trt::PluginTensorDesc*,
                          int32_t) noexcept override {
        return guarded(name(), "onShapeChange", kFailed, [&] {
            op_.workspace_size(attributes_, tensor_infos(inputs, num_inputs));
            return kOk;
        });
    }

    int32_t enqueue(const trt::PluginTensorDesc* input_descs, const trt::PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void* workspace, qwen3moe_stream stream) noexcept override {
        return guarded(name(), "enqueue", kFailed, [&] {
            for (const Alias& alias : decl().aliases) {
                QWEN3MOE_EXPECT(static_cast<const void*>(outputs[alias.output]), ==, inputs[alias.input],
                                decl().outputs[alias.output].name << " must be bound to the memory of "
                                                                  << decl().inputs[alias.input].name);
            }
            op_.run(attributes_, tensor_infos(input_descs, decl().num_inputs()), {inputs, outputs, workspace, stream});
            return kOk;
        });
    }

    trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override { return clone(); }

    const trt::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        return guarded(name(), "getFieldsToSerialize", static_cast<trt::PluginFieldCollection*>(nullptr), [&] {
            fields_ = plugin_fields<trt::PluginField>(decl(), &attributes_);
            collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
            return &collection_;
        });
    }

   private:
    static constexpr int32_t kOk = 0, kFailed = 1;

    const OpDecl& decl() const { return op_.decl(); }
    const char* name() const { return decl().name; }

    const Op& op_;
    const Attributes attributes_;
    std::vector<trt::PluginField> fields_;  // point into attributes_
    trt::PluginFieldCollection collection_ = {};
};

class CreatorV3 final : public trt::IPluginCreatorV3One {
   public:
    explicit CreatorV3(const Op& op)
        : op_(op),
          fields_(plugin_fields<trt::PluginField>(op.decl(), nullptr)),
          collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

    // In both phases the fields are the declared attributes, whether from an ONNX node or from a plan.
    trt::IPluginV3* createPlugin(const char*, const trt::PluginFieldCollection* fields,
                                 trt::TensorRTPhase) noexcept override {
        return guarded(getPluginName(), "createPlugin", static_cast<PluginV3*>(nullptr), [&] {
            Attributes attributes = attributes_from_fields<trt::PluginFieldType>(op_.decl(), fields);
            op_.check(attributes);
            return new PluginV3(op_, std::move(attributes));
        });
    }

    const trt::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return op_.decl().name; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

   private:
    const Op& op_;
    const std::vector<trt::PluginField> fields_;
    const trt::PluginFieldCollection collection_;
};

}  // namespace

}  // namespace qwen3moe

// Both must be exported for TensorRT to load the library.
extern "C" qwen3moe::trt::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    using namespace qwen3moe;
    static CreatorV3 paged_attention(kPagedAttention), moe(kMoE), balanced_moe(kBalancedMoE), rms_norm(kRMSNorm),
        add_rms_norm(kAddRMSNorm), linear(kLinear), linear_float32(kLinearFloat32), all_reduce(kAllReduce),
        all_gather(kAllGather), all_reduce_add_rms_norm(kAllReduceAddRMSNorm);
    static trt::IPluginCreatorInterface* const creators[] = {
        &paged_attention, &moe,        &balanced_moe,           &rms_norm, &add_rms_norm, &linear, &linear_float32,
        &all_reduce,      &all_gather, &all_reduce_add_rms_norm};
    num_creators = static_cast<int32_t>(std::size(creators));
    return creators;
}

extern "C" void setLoggerFinder(void*) {}
