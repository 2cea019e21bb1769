#include "declarations.h"

#include <sstream>

namespace qwen3moe {

namespace {

constexpr DeclaredType kActivation = DeclaredType::kActivation;
constexpr DeclaredType kFloat32 = DeclaredType::kFloat32;
constexpr DeclaredType kInt32 = DeclaredType::kInt32;

const char* name_of(DeclaredType dtype) {
    switch (dtype) {
        case DeclaredType::kActivation:
            return "activation";
        case DeclaredType::kFloat32:
            return "float32";
        case DeclaredType::kInt32:
            return "int32";
    }
    return "unknown";
}

template <typename Items, typename Write>
void write_list(std::ostream& out, const Items& items, Write write) {
    const char* separator = "[";
    for (const auto& item : items) {
        out << separator;
        write(item);
        separator = ", ";
    }
    out << (items.empty() ? "[]" : "]");
}

void write_tensors(std::ostream& out, const std::vector<TensorDecl>& tensors) {
    write_list(out, tensors, [&](const TensorDecl& tensor) {
        out << "{\"name\": \"" << tensor.name << "\", \"dtype\": \"" << name_of(tensor.dtype) << "\", \"shape\": ";
        write_list(out, tensor.shape, [&](const char* symbol) { out << '"' << symbol << '"'; });
        out << "}";
    });
}

void write_op(std::ostream& out, const OpDecl& op) {
    out << "{\"name\": \"" << op.name << "\", \"version\": " << kPluginVersion << ", \"inputs\": ";
    write_tensors(out, op.inputs);
    out << ", \"outputs\": ";
    write_tensors(out, op.outputs);
    out << ", \"attributes\": ";
    write_list(out, op.attributes, [&](const AttributeDecl& attribute) {
        const char* type = attribute.type == AttributeType::kInt ? "int" : "float";
        out << "{\"name\": \"" << attribute.name << "\", \"kind\": \"" << type << "\"}";
    });
    out << ", \"aliases\": ";
    write_list(out, op.aliases, [&](const Alias& alias) {
        out << "[\"" << op.outputs[alias.output].name << "\", \"" << op.inputs[alias.input].name << "\"]";
    });
    out << "}";
}

}  // namespace

const OpDecl kPagedAttentionDecl = {
    "PagedAttention",
    {
        {"qkv", kActivation, {"T", "(Hq + 2 Hkv) D"}},
        {"q_norm_weight", kActivation, {"D"}},
        {"k_norm_weight", kActivation, {"D"}},
        {"cos_sin_cache", kFloat32, {"P", "D"}},
        {"positions", kInt32, {"T"}},
        {"kv_cache", kActivation, {"num_blocks", "2", "Hkv", "block_size", "D"}},
        {"block_table", kInt32, {"B", "max_blocks"}},
        {"cu_seqlens", kInt32, {"B + 1"}},
        {"context_lens", kInt32, {"B"}},
    },
    {
        {"out", kActivation, {"T", "Hq D"}},
        {"kv_cache_out", kActivation, {"num_blocks", "2", "Hkv", "block_size", "D"}},
    },
    {
        {"num_heads", AttributeType::kInt},
        {"num_kv_heads", AttributeType::kInt},
        {"head_dim", AttributeType::kInt},
        {"scale", AttributeType::kFloat},
        {"eps", AttributeType::kFloat},
    },
    {{1, 5}},
};

const OpDecl kMoEDecl = {
    "MoE",
    {
        {"hidden", kActivation, {"T", "H"}},
        {"router_logits", kActivation, {"T", "E"}},
        {"gate_up", kActivation, {"E_local", "2 I", "H"}},
        {"down", kActivation, {"E_local", "H", "I"}},
        {"expert_map", kInt32, {"E"}},
    },
    {{"out", kActivation, {"T", "H"}}},
    {{"top_k", AttributeType::kInt}, {"norm_topk_prob", AttributeType::kInt}},
    {},
};

const OpDecl kBalancedMoEDecl = {
    "BalancedMoE",
    {
        {"hidden", kActivation, {"T", "H"}},
        {"router_logits", kActivation, {"T", "E"}},
        {"gate_up", kActivation, {"E_local", "2 I", "H"}},
        {"down", kActivation, {"E_local", "H", "I"}},
        {"expert_map", kInt32, {"R", "E"}},
        {"positions", kInt32, {"T"}},
        {"cu_seqlens", kInt32, {"B + 1"}},
        {"load", kInt32, {"E"}},
    },
    {{"out", kActivation, {"T", "H"}}, {"load_out", kInt32, {"E"}}},
    kMoEDecl.attributes,
    {{1, 7}},
};

const OpDecl kRMSNormDecl = {
    "RMSNorm",
    {{"x", kActivation, {"T", "H"}}, {"weight", kActivation, {"H"}}},
    {{"out", kActivation, {"T", "H"}}},
    {{"eps", AttributeType::kFloat}},
    {},
};

const OpDecl kAddRMSNormDecl = {
    "AddRMSNorm",
    {{"x", kActivation, {"T", "H"}}, {"residual", kActivation, {"T", "H"}}, {"weight", kActivation, {"H"}}},
    {{"out", kActivation, {"T", "H"}}, {"residual_out", kActivation, {"T", "H"}}},
    {{"eps", AttributeType::kFloat}},
    {},
};

const OpDecl kLinearDecl = {
    "Linear",
    {{"x", kActivation, {"T", "K"}}, {"weight", kActivation, {"N", "K"}}},
    {{"out", kActivation, {"T", "N"}}},
    {},
    {},
};

const OpDecl kLinearFloat32Decl = {
    "LinearFloat32",
    {{"x", kActivation, {"T", "K"}}, {"weight", kActivation, {"N", "K"}}},
    {{"out", kFloat32, {"T", "N"}}},
    {},
    {},
};

const OpDecl kAllReduceDecl = {
    "AllReduce", {{"x", kActivation, {"T", "H"}}}, {{"out", kActivation, {"T", "H"}}}, {}, {},
};

const OpDecl kAllGatherDecl = {
    "AllGather",
    {{"x", kActivation, {"M", "C"}}},
    {{"out", kActivation, {"world_size M", "C"}}},
    {{"world_size", AttributeType::kInt}},
    {},
};

const OpDecl kAllReduceAddRMSNormDecl = {
    "AllReduceAddRMSNorm", kAddRMSNormDecl.inputs, kAddRMSNormDecl.outputs, kAddRMSNormDecl.attributes, {},
};

int OpDecl::aliased_input(int output) const {
    for (const Alias& alias : aliases) {
        if (alias.output == output) return alias.input;
    }
    return -1;
}

std::string declarations_as_json() {
    std::ostringstream out;
    const std::vector<const OpDecl*> decls = {
        &kPagedAttentionDecl, &kMoEDecl,           &kBalancedMoEDecl, &kRMSNormDecl,   &kAddRMSNormDecl,
        &kLinearDecl,         &kLinearFloat32Decl, &kAllReduceDecl,   &kAllGatherDecl, &kAllReduceAddRMSNormDecl};
    write_list(out, decls, [&](const OpDecl* op) { write_op(out, *op); });
    return out.str();
}

}  // namespace qwen3moe

extern "C" const char* qwen3moe_op_declarations() {
    static const std::string json = qwen3moe::declarations_as_json();
    return json.c_str();
}
