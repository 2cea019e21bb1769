// Prints sizes, offsets and vtable slots of TensorRT's plugin interface as lines `name value`. test_interface.py
// compiles it against our declarations; against the official headers it prints the same lines:
//   g++ -DTRT=nvinfer1 -include NvInferRuntime.h -I<TensorRT>/include -I<CUDA>/include interface_probe.cpp
//   (-DTRT8: 8.6)
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

using namespace TRT;

struct CUstream_st;

// The slot of a virtual function: the Itanium C++ ABI keeps 1 + its byte offset in a pointer to member.
template <typename Function>
long slot(Function function) {
    ptrdiff_t offset;
    std::memcpy(&offset, &function, sizeof offset);
    return (offset - 1) / static_cast<ptrdiff_t>(sizeof(void*));
}

#define SIZE(type) std::printf("sizeof(" #type ") %zu\n", sizeof(type))
#define OFFSET(type, member) std::printf(#type "." #member " %zu\n", offsetof(type, member))
#define SLOT(type, function) std::printf(#type "::" #function " %ld\n", slot(&type::function))
#define OVERLOAD(type, function, result, qualifiers, ...)        \
    std::printf(#type "::" #function "(" #__VA_ARGS__ ") %ld\n", \
                slot(static_cast<result (type::*)(__VA_ARGS__) qualifiers>(&type::function)))

void shared_structures() {
    SIZE(Dims);
    OFFSET(Dims, d);
    SIZE(DimsExprs);
    OFFSET(DimsExprs, d);
    SIZE(PluginTensorDesc);
    OFFSET(PluginTensorDesc, type);
    OFFSET(PluginTensorDesc, format);
    OFFSET(PluginTensorDesc, scale);
    SIZE(DynamicPluginTensorDesc);
    OFFSET(DynamicPluginTensorDesc, min);
    OFFSET(DynamicPluginTensorDesc, max);
    SIZE(PluginField);
    OFFSET(PluginField, data);
    OFFSET(PluginField, type);
    OFFSET(PluginField, length);
    SIZE(PluginFieldCollection);
    OFFSET(PluginFieldCollection, fields);
    std::printf("DataType %d %d %d\n", int(DataType::kFLOAT), int(DataType::kHALF), int(DataType::kINT32));
    std::printf("PluginFieldType %d %d %d\n", int(PluginFieldType::kFLOAT32), int(PluginFieldType::kFLOAT64),
                int(PluginFieldType::kINT32));
    std::printf("TensorFormat %d\n", int(TensorFormat::kLINEAR));
}

// IExprBuilder is TensorRT's object; its inline functions must reach slots 2 and 3 of the implementation that it points
// to.
void expr_builder() {
    struct Implementation {
        virtual ~Implementation() = default;
        virtual IDimensionExpr const* constant(int64_t value) {
            std::printf("IExprBuilder::constant %d\n", static_cast<int>(value));
            return reinterpret_cast<IDimensionExpr const*>(this);
        }
        virtual IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
                                                IDimensionExpr const& second) {
            std::printf("IExprBuilder::operation %d %d\n", int(op), &first == &second);
            return nullptr;
        }
    } implementation;
    struct {
        void* vtable;
        Implementation* implementation;
    } builder = {nullptr, &implementation};
    auto* expressions = reinterpret_cast<IExprBuilder*>(&builder);
    IDimensionExpr const& extent = *expressions->constant(7);
    expressions->operation(DimensionOperation::kPROD, extent, extent);
}

#ifdef TRT8

void plugin() {
    SLOT(IPluginV2, getTensorRTVersion);
    SLOT(IPluginV2, getPluginType);
    SLOT(IPluginV2, getPluginVersion);
    SLOT(IPluginV2, getNbOutputs);
    SLOT(IPluginV2, getOutputDimensions);
    SLOT(IPluginV2, supportsFormat);
    SLOT(IPluginV2, configureWithFormat);
    SLOT(IPluginV2, initialize);
    SLOT(IPluginV2, terminate);
    SLOT(IPluginV2, getWorkspaceSize);
    SLOT(IPluginV2, enqueue);
    SLOT(IPluginV2, getSerializationSize);
    SLOT(IPluginV2, serialize);
    SLOT(IPluginV2, destroy);
    SLOT(IPluginV2, clone);
    SLOT(IPluginV2, setPluginNamespace);
    SLOT(IPluginV2, getPluginNamespace);
    SLOT(IPluginV2Ext, getOutputDataType);
    SLOT(IPluginV2Ext, isOutputBroadcastAcrossBatch);
    SLOT(IPluginV2Ext, canBroadcastInputAcrossBatch);
    SLOT(IPluginV2Ext, configurePlugin);
    SLOT(IPluginV2Ext, attachToContext);
    SLOT(IPluginV2Ext, detachFromContext);
    SLOT(IPluginV2Ext, clone);
    SLOT(IPluginV2DynamicExt, clone);
    OVERLOAD(IPluginV2DynamicExt, getOutputDimensions, DimsExprs, noexcept, int32_t, DimsExprs const*, int32_t,
             IExprBuilder&);
    SLOT(IPluginV2DynamicExt, supportsFormatCombination);
    OVERLOAD(IPluginV2DynamicExt, configurePlugin, void, noexcept, DynamicPluginTensorDesc const*, int32_t,
             DynamicPluginTensorDesc const*, int32_t);
    OVERLOAD(IPluginV2DynamicExt, getWorkspaceSize, size_t, const noexcept, PluginTensorDesc const*, int32_t,
             PluginTensorDesc const*, int32_t);
    OVERLOAD(IPluginV2DynamicExt, enqueue, int32_t, noexcept, PluginTensorDesc const*, PluginTensorDesc const*,
             void const* const*, void* const*, void*, CUstream_st*);
}

void creator() {
    SLOT(IPluginCreator, getTensorRTVersion);
    SLOT(IPluginCreator, getPluginName);
    SLOT(IPluginCreator, getPluginVersion);
    SLOT(IPluginCreator, getFieldNames);
    SLOT(IPluginCreator, createPlugin);
    SLOT(IPluginCreator, deserializePlugin);
    SLOT(IPluginCreator, setPluginNamespace);
    SLOT(IPluginCreator, getPluginNamespace);
}

#else

// Called by its qualified name, the function looks at no object.
template <typename Interface>
void print_kind(char const* name) {
    alignas(Interface) static char storage[sizeof(Interface)];
    InterfaceInfo const info = reinterpret_cast<Interface*>(storage)->Interface::getInterfaceInfo();
    std::printf("kind of %s %s %d.%d\n", name, info.kind, info.major, info.minor);
}

#define KIND(type) print_kind<type>(#type)

void plugin() {
    KIND(IPluginV3);
    KIND(IPluginV3OneCore);
    KIND(IPluginV3OneBuildV2);
    KIND(IPluginV3OneRuntime);
    std::printf("capabilities %d %d %d\n", int(PluginCapabilityType::kCORE), int(PluginCapabilityType::kBUILD),
                int(PluginCapabilityType::kRUNTIME));
    std::printf("bf16, int64 %d %d %d\n", int(DataType::kBF16), int(DataType::kINT64), int(PluginFieldType::kINT64));
    SLOT(IPluginV3, getAPILanguage);
    SLOT(IPluginV3, getInterfaceInfo);
    SLOT(IPluginV3, getCapabilityInterface);
    SLOT(IPluginV3, clone);
    SLOT(IPluginV3OneCore, getPluginName);
    SLOT(IPluginV3OneCore, getPluginVersion);
    SLOT(IPluginV3OneCore, getPluginNamespace);
    SLOT(IPluginV3OneBuildV2, configurePlugin);
    SLOT(IPluginV3OneBuildV2, getOutputDataTypes);
    SLOT(IPluginV3OneBuildV2, getOutputShapes);
    SLOT(IPluginV3OneBuildV2, supportsFormatCombination);
    SLOT(IPluginV3OneBuildV2, getNbOutputs);
    SLOT(IPluginV3OneBuildV2, getWorkspaceSize);
    SLOT(IPluginV3OneBuildV2, getValidTactics);
    SLOT(IPluginV3OneBuildV2, getNbTactics);
    SLOT(IPluginV3OneBuildV2, getTimingCacheID);
    SLOT(IPluginV3OneBuildV2, getFormatCombinationLimit);
    SLOT(IPluginV3OneBuildV2, getMetadataString);
    SLOT(IPluginV3OneBuildV2, getAliasedInput);
    SLOT(IPluginV3OneRuntime, setTactic);
    SLOT(IPluginV3OneRuntime, onShapeChange);
    SLOT(IPluginV3OneRuntime, enqueue);
    SLOT(IPluginV3OneRuntime, attachToContext);
    SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
}

void creator() {
    KIND(IPluginCreatorV3One);
    SLOT(IPluginCreatorV3One, createPlugin);
    SLOT(IPluginCreatorV3One, getFieldNames);
    SLOT(IPluginCreatorV3One, getPluginName);
    SLOT(IPluginCreatorV3One, getPluginVersion);
    SLOT(IPluginCreatorV3One, getPluginNamespace);
}

#endif

int main() {
    shared_structures();
    expr_builder();
    plugin();
    creator();
}
