// The part of TensorRT 8.6's plugin interface (IPluginV2DynamicExt) that the shells use, on the same terms as
// interface_v3.h. Extents are 32-bit. Functions that TensorRT never calls on a plugin with dynamic shapes have no body
// of interest here, but keep their slots.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace qwen3moe::trt8 {

using cudaStream_t = CUstream_st*;

constexpr int32_t kTensorRTVersion = 8600;  // 8.6.0: major * 1000 + minor * 100 + patch
constexpr int32_t kV2DynamicExt = 3;        // in the top byte of a plugin's getTensorRTVersion

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3 };
enum class DimensionOperation : int32_t { kPROD = 1 };
enum class TensorFormat : int32_t { kLINEAR = 0 };
enum class PluginFieldType : int32_t { kFLOAT32 = 1, kFLOAT64 = 2, kINT32 = 5, kUNKNOWN = 8, kINT64 = 10 };

struct Dims {
    static constexpr int32_t MAX_DIMS = 8;
    int32_t nbDims;
    int32_t d[MAX_DIMS];
};

struct PluginTensorDesc {
    Dims dims;  // -1 stands for an extent known only at run time
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max;
};

struct PluginField {
    const char* name;
    const void* data;
    PluginFieldType type;
    int32_t length;
};

struct PluginFieldCollection {
    int32_t nbFields;
    const PluginField* fields;
};

class IDimensionExpr;

struct DimsExprs {
    int32_t nbDims;
    const IDimensionExpr* d[Dims::MAX_DIMS];
};

// TensorRT's own object: a vtable, then a pointer to an implementation whose third and fourth virtual functions are
// `constant` and `operation`.
class IExprBuilder {
   public:
    const IDimensionExpr* constant(int32_t value) noexcept { return implementation_->constant(value); }
    const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first,
                                    const IDimensionExpr& second) noexcept {
        return implementation_->operation(op, first, second);
    }

   protected:
    class Implementation {
       public:
        virtual ~Implementation() = default;
        virtual const IDimensionExpr* constant(int32_t value) = 0;
        virtual const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first,
                                                const IDimensionExpr& second) = 0;
    };
    virtual ~IExprBuilder() = 0;
    Implementation* implementation_;
};

class IPluginV2 {
   public:
    virtual int32_t getTensorRTVersion() const noexcept { return kTensorRTVersion; }
    virtual const char* getPluginType() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual Dims getOutputDimensions(int32_t, const Dims*, int32_t) noexcept = 0;
    virtual bool supportsFormat(DataType, TensorFormat) const noexcept = 0;
    virtual void configureWithFormat(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                                     int32_t) noexcept = 0;
    virtual int32_t initialize() noexcept = 0;
    virtual void terminate() noexcept = 0;
    virtual size_t getWorkspaceSize(int32_t) const noexcept = 0;
    virtual int32_t enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept = 0;
    virtual size_t getSerializationSize() const noexcept = 0;
    virtual void serialize(void* buffer) const noexcept = 0;
    virtual void destroy() noexcept = 0;
    virtual IPluginV2* clone() const noexcept = 0;
    virtual void setPluginNamespace(const char* pluginNamespace) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
    virtual ~IPluginV2() noexcept = default;
};

class IPluginV2Ext : public IPluginV2 {
   public:
    virtual DataType getOutputDataType(int32_t index, const DataType* inputTypes, int32_t nbInputs) const noexcept = 0;
    virtual bool isOutputBroadcastAcrossBatch(int32_t, const bool*, int32_t) const noexcept = 0;
    virtual bool canBroadcastInputAcrossBatch(int32_t) const noexcept = 0;
    virtual void configurePlugin(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*,
                                 const bool*, const bool*, TensorFormat, int32_t) noexcept = 0;
    virtual void attachToContext(void* cudnn, void* cublas, void* allocator) noexcept = 0;
    virtual void detachFromContext() noexcept = 0;
    IPluginV2Ext* clone() const noexcept override = 0;
};

class IPluginV2DynamicExt : public IPluginV2Ext {
   public:
    IPluginV2DynamicExt* clone() const noexcept override = 0;
    virtual DimsExprs getOutputDimensions(int32_t outputIndex, const DimsExprs* inputs, int32_t nbInputs,
                                          IExprBuilder& exprBuilder) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t pos, const PluginTensorDesc* inOut, int32_t nbInputs,
                                           int32_t nbOutputs) noexcept = 0;
    virtual void configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs,
                                 const DynamicPluginTensorDesc* out, int32_t nbOutputs) noexcept = 0;
    virtual size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t nbInputs, const PluginTensorDesc* outputs,
                                    int32_t nbOutputs) const noexcept = 0;
    virtual int32_t enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc* outputDesc,
                            const void* const* inputs, void* const* outputs, void* workspace,
                            cudaStream_t stream) noexcept = 0;

    int32_t getTensorRTVersion() const noexcept override { return kV2DynamicExt << 24 | kTensorRTVersion; }
    Dims getOutputDimensions(int32_t, const Dims*, int32_t) noexcept final { return {-1, {}}; }
    bool supportsFormat(DataType, TensorFormat) const noexcept final { return false; }
    void configureWithFormat(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                             int32_t) noexcept final {}
    size_t getWorkspaceSize(int32_t) const noexcept final { return 0; }
    int32_t enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept final { return 1; }
    bool isOutputBroadcastAcrossBatch(int32_t, const bool*, int32_t) const noexcept final { return false; }
    bool canBroadcastInputAcrossBatch(int32_t) const noexcept final { return true; }
    void configurePlugin(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*, const bool*,
                         const bool*, TensorFormat, int32_t) noexcept final {}
    void attachToContext(void*, void*, void*) noexcept final {}
    void detachFromContext() noexcept final {}
};

class IPluginCreator {
   public:
    virtual int32_t getTensorRTVersion() const noexcept { return kTensorRTVersion; }
    virtual const char* getPluginName() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
    virtual IPluginV2* createPlugin(const char* name, const PluginFieldCollection* fc) noexcept = 0;
    virtual IPluginV2* deserializePlugin(const char* name, const void* serialData, size_t serialLength) noexcept = 0;
    virtual void setPluginNamespace(const char* pluginNamespace) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
    virtual ~IPluginCreator() = default;
};

}  // namespace qwen3moe::trt8
