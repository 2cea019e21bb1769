// From TensorRT's descriptors to the operators' terms, for every version of them: 32- and 64-bit extents, the same
// names.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "op.h"

namespace qwen3moe {

template <typename DataType>
ElementType element_type(DataType dtype) {
    switch (static_cast<int32_t>(dtype)) {
        case 0:
            return ElementType::kFloat32;
        case 1:
            return ElementType::kFp16;
        case 3:
            return ElementType::kInt32;
        case 7:
            return ElementType::kBf16;
        default:
            return ElementType::kOther;
    }
}

template <typename Dims, typename DataType>
TensorInfo tensor_info(const Dims& dims, DataType dtype) {
    QWEN3MOE_EXPECT(dims.nbDims, >=, 0, "rank of a tensor");
    QWEN3MOE_EXPECT(dims.nbDims, <=, Dims::MAX_DIMS, "rank of a tensor");
    TensorInfo tensor = {element_type(dtype), dims.nbDims, {}};
    std::copy_n(dims.d, dims.nbDims, tensor.shape.begin());
    return tensor;
}

template <typename Desc>
std::vector<TensorInfo> tensor_infos(const Desc* descs, int32_t count) {
    std::vector<TensorInfo> tensors;
    tensors.reserve(count);
    for (int32_t i = 0; i < count; ++i) tensors.push_back(tensor_info(descs[i].dims, descs[i].type));
    return tensors;
}

// The same of the largest shapes that a builder may meet.
template <typename DynamicDesc>
std::vector<TensorInfo> largest_tensor_infos(const DynamicDesc* descs, int32_t count) {
    std::vector<TensorInfo> tensors;
    tensors.reserve(count);
    for (int32_t i = 0; i < count; ++i) tensors.push_back(tensor_info(descs[i].max, descs[i].desc.type));
    return tensors;
}

// Whether tensor `position` among a node's inputs and outputs may be `desc`, given input 0's type.
template <typename Desc>
bool takes(const OpDecl& decl, int32_t position, const Desc& desc, ElementType activation) {
    const bool is_input = position < decl.num_inputs();
    const TensorDecl& tensor = is_input ? decl.inputs[position] : decl.outputs[position - decl.num_inputs()];
    return desc.format == decltype(desc.format)::kLINEAR && takes(tensor, element_type(desc.type), activation);
}

// The type of output `index`, given input 0's.
template <typename DataType>
DataType output_type(const OpDecl& decl, int32_t index, DataType activation) {
    switch (decl.outputs[index].dtype) {
        case DeclaredType::kFloat32:
            return DataType::kFLOAT;
        case DeclaredType::kInt32:
            return DataType::kINT32;
        case DeclaredType::kActivation:
            break;
    }
    return activation;
}

// The extent of the inputs' dimension `symbol`; null if they have none of the name.
template <typename DimsExprs>
auto input_extent(const OpDecl& decl, std::string_view symbol, const DimsExprs* inputs) {
    using Extent = std::remove_reference_t<decltype(inputs->d[0])>;
    for (int32_t i = 0; i < decl.num_inputs(); ++i) {
        const std::vector<const char*>& shape = decl.inputs[i].shape;
        const auto axis = std::find(shape.begin(), shape.end(), symbol);
        if (axis != shape.end()) return Extent{inputs[i].d[axis - shape.begin()]};
    }
    return Extent{nullptr};
}

// An extent that the attributes fix, an input's, or a product of two such: "world_size N".
template <typename DimensionOperation, typename DimsExprs, typename ExprBuilder>
auto output_extent(const OpDecl& decl, const Sizes& fixed, std::string_view symbol, const DimsExprs* inputs,
                   ExprBuilder& builder) -> std::remove_const_t<decltype(input_extent(decl, symbol, inputs))> {
    if (fixed.has(symbol)) return builder.constant(fixed[symbol]);
    if (const auto extent = input_extent(decl, symbol, inputs); extent != nullptr) return extent;
    const size_t space = symbol.find(' ');
    if (space == symbol.npos) throw std::logic_error("no input has the dimension " + std::string(symbol));
    const auto factor = [&](std::string_view name) {
        return output_extent<DimensionOperation>(decl, fixed, name, inputs, builder);
    };
    return builder.operation(DimensionOperation::kPROD, *factor(symbol.substr(0, space)),
                             *factor(symbol.substr(space + 1)));
}

template <typename DimensionOperation, typename DimsExprs, typename ExprBuilder>
DimsExprs output_shape(const Op& op, const Attributes& attributes, size_t index, const DimsExprs* inputs,
                       ExprBuilder& builder) {
    const OpDecl& decl = op.decl();
    const Sizes fixed = op.fixed_sizes(attributes);
    DimsExprs output = {};
    for (const char* symbol : decl.outputs[index].shape) {
        output.d[output.nbDims++] = output_extent<DimensionOperation>(decl, fixed, symbol, inputs, builder);
    }
    return output;
}

// Throws unless a node's inputs have the declared number and ranks.
template <typename DimsExprs>
void expect_ranks(const OpDecl& decl, const DimsExprs* inputs, int32_t num_inputs) {
    QWEN3MOE_EXPECT(num_inputs, ==, decl.num_inputs(), "number of inputs");
    for (int32_t i = 0; i < num_inputs; ++i) {
        QWEN3MOE_EXPECT(inputs[i].nbDims, ==, decl.inputs[i].rank(), decl.inputs[i].name << ": rank");
    }
}

// An operator's attributes as plugin fields, with the values of `attributes` where given.
template <typename Field>
std::vector<Field> plugin_fields(const OpDecl& decl, const Attributes* attributes) {
    using Type = decltype(Field::type);
    std::vector<Field> fields;
    for (size_t i = 0; i < decl.attributes.size(); ++i) {
        const Type type = decl.attributes[i].type == AttributeType::kInt ? Type::kINT32 : Type::kFLOAT32;
        fields.push_back({decl.attributes[i].name, attributes ? attributes->address(i) : nullptr, type, 1});
    }
    return fields;
}

}  // namespace qwen3moe
