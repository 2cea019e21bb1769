// The operators as C++ sees them: the table in qwen3moe_plugins/ops.py once more, which the shells check every node
// against. tests/plugins/test_declarations.py compares the two through qwen3moe_op_declarations().
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace qwen3moe {

constexpr const char* kPluginNamespace = "qwen3moe";
constexpr const char* kPluginVersion = "1";

enum class DeclaredType { kActivation, kFloat32, kInt32 };
enum class AttributeType { kInt, kFloat };

struct TensorDecl {
    const char* name;
    DeclaredType dtype;
    std::vector<const char*> shape;  // one symbol a dimension

    int32_t rank() const { return static_cast<int32_t>(shape.size()); }
};

struct AttributeDecl {
    const char* name;
    AttributeType type;
};

struct Alias {
    int output, input;
};

struct OpDecl {
    const char* name;
    std::vector<TensorDecl> inputs, outputs;
    std::vector<AttributeDecl> attributes;
    std::vector<Alias> aliases;

    int32_t num_inputs() const { return static_cast<int32_t>(inputs.size()); }
    // The input whose memory `output` shares, or -1.
    int aliased_input(int output) const;
};

extern const OpDecl kPagedAttentionDecl;
extern const OpDecl kMoEDecl;
extern const OpDecl kBalancedMoEDecl;
extern const OpDecl kRMSNormDecl;
extern const OpDecl kAddRMSNormDecl;
extern const OpDecl kLinearDecl;
extern const OpDecl kLinearFloat32Decl;
extern const OpDecl kAllReduceDecl;
extern const OpDecl kAllGatherDecl;
extern const OpDecl kAllReduceAddRMSNormDecl;

std::string declarations_as_json();

}  // namespace qwen3moe
