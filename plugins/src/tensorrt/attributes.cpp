#include "attributes.h"

#include <cstring>
#include <limits>

namespace qwen3moe {

Attributes::Attributes(const OpDecl& decl) : decl_(&decl), values_(decl.attributes.size()) {}

size_t Attributes::index_of(std::string_view name, AttributeType type) const {
    for (size_t i = 0; i < values_.size(); ++i) {
        if (name != decl_->attributes[i].name) continue;
        if (type == decl_->attributes[i].type) return i;
        const char* got = type == AttributeType::kInt ? "an int" : "a float";
        throw std::invalid_argument("attribute " + std::string(name) + " is not declared as " + got);
    }
    throw std::invalid_argument("unknown attribute " + std::string(name));
}

Attributes::Value& Attributes::unset_value(std::string_view name, AttributeType type) {
    Value& value = values_[index_of(name, type)];
    QWEN3MOE_EXPECT(value.set, ==, false, "attribute " << name << " given twice");
    value.set = true;
    return value;
}

void Attributes::set_int(std::string_view name, int64_t integer) {
    Value& value = unset_value(name, AttributeType::kInt);
    QWEN3MOE_EXPECT(integer, >=, 0, "attribute " << name);
    QWEN3MOE_EXPECT(integer, <=, std::numeric_limits<int32_t>::max(), "attribute " << name);
    value.integer = static_cast<int32_t>(integer);
}

void Attributes::set_float(std::string_view name, double real) {
    unset_value(name, AttributeType::kFloat).real = static_cast<float>(real);
}

void Attributes::require_all() const {
    for (size_t i = 0; i < values_.size(); ++i) {
        if (!values_[i].set) throw std::invalid_argument(std::string("missing attribute ") + decl_->attributes[i].name);
    }
}

int32_t Attributes::integer(std::string_view name) const {
    return values_[index_of(name, AttributeType::kInt)].integer;
}

float Attributes::real(std::string_view name) const { return values_[index_of(name, AttributeType::kFloat)].real; }

const void* Attributes::address(size_t index) const {
    const Value& value = values_[index];
    if (decl_->attributes[index].type == AttributeType::kInt) return &value.integer;
    return &value.real;
}

void Attributes::serialize(void* buffer) const {
    for (size_t i = 0; i < values_.size(); ++i) std::memcpy(static_cast<char*>(buffer) + 4 * i, address(i), 4);
}

Attributes Attributes::deserialize(const OpDecl& decl, const void* buffer, size_t size) {
    Attributes attributes(decl);
    QWEN3MOE_EXPECT(size, ==, attributes.serialized_size(), "serialized attributes");
    for (size_t i = 0; i < attributes.values_.size(); ++i) {
        Value& value = attributes.values_[i];
        value.set = true;
        void* target = &value.real;
        if (decl.attributes[i].type == AttributeType::kInt) target = &value.integer;
        std::memcpy(target, static_cast<const char*>(buffer) + 4 * i, 4);
    }
    return attributes;
}

}  // namespace qwen3moe
