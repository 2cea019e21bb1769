// The compile-time constants of one node, in the order of its declaration.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "declarations.h"
#include "guard.h"

namespace qwen3moe {

class Attributes {
   public:
    explicit Attributes(const OpDecl& decl);

    // `name` must be declared with the type and not yet set.
    void set_int(std::string_view name, int64_t value);
    void set_float(std::string_view name, double value);
    void require_all() const;  // throws, naming an attribute that was not set

    int32_t integer(std::string_view name) const;
    float real(std::string_view name) const;
    const OpDecl& decl() const { return *decl_; }

    // Where attribute `index` lies, for fields that point to their value: an int32_t or a float.
    const void* address(size_t index) const;

    // Four bytes an attribute, in the order of the declaration.
    size_t serialized_size() const { return 4 * values_.size(); }
    void serialize(void* buffer) const;
    static Attributes deserialize(const OpDecl& decl, const void* buffer, size_t size);

   private:
    struct Value {
        bool set = false;
        int32_t integer = 0;
        float real = 0.0f;
    };
    size_t index_of(std::string_view name, AttributeType type) const;
    Value& unset_value(std::string_view name, AttributeType type);

    const OpDecl* decl_;
    std::vector<Value> values_;
};

// Sets attributes from TensorRT's fields. The ONNX parsers store an int attribute as kINT32 or kINT64 by version.
template <typename FieldType, typename FieldCollection>
Attributes attributes_from_fields(const OpDecl& decl, const FieldCollection* collection) {
    if (collection == nullptr) throw std::invalid_argument("no plugin fields given");
    Attributes attributes(decl);
    for (int32_t i = 0; i < collection->nbFields; ++i) {
        const auto& field = collection->fields[i];
        QWEN3MOE_EXPECT(field.length, ==, 1, "attribute " << field.name);
        if (field.data == nullptr) throw std::invalid_argument(std::string("no value for attribute ") + field.name);
        switch (field.type) {
            case FieldType::kINT32:
                attributes.set_int(field.name, *static_cast<const int32_t*>(field.data));
                break;
            case FieldType::kINT64:
                attributes.set_int(field.name, *static_cast<const int64_t*>(field.data));
                break;
            case FieldType::kFLOAT32:
                attributes.set_float(field.name, *static_cast<const float*>(field.data));
                break;
            case FieldType::kFLOAT64:
                attributes.set_float(field.name, *static_cast<const double*>(field.data));
                break;
            default:
                throw std::invalid_argument(std::string("attribute ") + field.name + " is neither int nor float");
        }
    }
    attributes.require_all();
    return attributes;
}

}  // namespace qwen3moe
