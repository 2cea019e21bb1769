// Drives libqwen3moe_plugins_trt8.so as TensorRT 8.6's builder would, and prints what the plugins answer, a line each.
// Compiled by test_trt8_shell.py against our declarations; compiles against the official headers too, with
// -DTRT=nvinfer1.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace TRT;

namespace {

using Shapes = std::vector<std::vector<int32_t>>;

// What TensorRT gives as an extent: here a number, read back by extent().
struct Extent {
    int32_t size;
};
const IDimensionExpr* expression(int32_t size) { return reinterpret_cast<const IDimensionExpr*>(new Extent{size}); }
int32_t extent(const IDimensionExpr* expression) { return reinterpret_cast<const Extent*>(expression)->size; }

struct ExprImplementation {
    virtual ~ExprImplementation() = default;
    virtual const IDimensionExpr* constant(int32_t size) { return expression(size); }
    virtual const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first,
                                            const IDimensionExpr& second) {
        return expression(op == DimensionOperation::kPROD ? extent(&first) * extent(&second) : -1);
    }
};

struct ExprBuilder {
    void* vtable = nullptr;
    ExprImplementation* implementation = new ExprImplementation;
};

void print_shape(const char* name, const DimsExprs& shape) {
    std::printf("%s", name);
    for (int32_t i = 0; i < shape.nbDims; ++i) std::printf(" %d", extent(shape.d[i]));
    std::printf(shape.nbDims < 0 ? " refused\n" : "\n");
}

std::vector<PluginTensorDesc> descriptors(const Shapes& shapes, const std::vector<DataType>& types) {
    std::vector<PluginTensorDesc> descs(shapes.size());
    for (size_t i = 0; i < shapes.size(); ++i) {
        descs[i].dims.nbDims = static_cast<int32_t>(shapes[i].size());
        std::memcpy(descs[i].dims.d, shapes[i].data(), sizeof(int32_t) * shapes[i].size());
        descs[i].type = types[i];
        descs[i].format = TensorFormat::kLINEAR;
    }
    return descs;
}

void print_outputs(IPluginV2DynamicExt* plugin, const Shapes& inputs) {
    std::vector<DimsExprs> shapes;
    for (const std::vector<int32_t>& input : inputs) {
        shapes.push_back({static_cast<int32_t>(input.size()), {}});
        for (size_t i = 0; i < input.size(); ++i) shapes.back().d[i] = expression(input[i]);
    }
    ExprBuilder builder;
    for (int32_t i = 0; i < plugin->getNbOutputs(); ++i) {
        print_shape("output", plugin->getOutputDimensions(i, shapes.data(), static_cast<int32_t>(shapes.size()),
                                                          reinterpret_cast<IExprBuilder&>(builder)));
    }
}

// For each tensor, whether the plugin takes it as it is, and with the type `changed`.
void print_formats(IPluginV2DynamicExt* plugin, std::vector<PluginTensorDesc> tensors, int32_t num_inputs,
                   DataType changed) {
    const auto num_outputs = static_cast<int32_t>(tensors.size()) - num_inputs;
    std::printf("formats");
    for (size_t i = 0; i < tensors.size(); ++i) {
        const auto position = static_cast<int32_t>(i);
        const DataType type = tensors[i].type;
        const bool takes = plugin->supportsFormatCombination(position, tensors.data(), num_inputs, num_outputs);
        tensors[i].type = changed;
        const bool takes_changed = plugin->supportsFormatCombination(position, tensors.data(), num_inputs, num_outputs);
        tensors[i].type = type;
        std::printf(" %d%d", takes, takes_changed);
    }
    std::printf("\n");
}

void probe(IPluginCreator* creator, const PluginFieldCollection& fields, const Shapes& inputs,
           const std::vector<DataType>& types) {
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator->createPlugin("node", &fields));
    std::string plan(plugin->getSerializationSize(), '\0');
    plugin->serialize(plan.data());
    plugin->destroy();
    plugin = static_cast<IPluginV2DynamicExt*>(creator->deserializePlugin("node", plan.data(), plan.size()));
    IPluginV2DynamicExt* clone = plugin->clone();
    plugin->destroy();
    std::printf("plugin %s %s %s\n", clone->getPluginNamespace(), clone->getPluginType(), clone->getPluginVersion());
    print_outputs(clone, inputs);
    print_outputs(clone, {inputs.begin(), inputs.end() - 1});
    std::vector<PluginTensorDesc> descs = descriptors(inputs, types);
    const auto num_inputs = static_cast<int32_t>(inputs.size());
    std::printf("type %d\n", static_cast<int32_t>(clone->getOutputDataType(0, types.data(), num_inputs)));
    const size_t workspace = clone->getWorkspaceSize(descs.data(), num_inputs, nullptr, 0);
    std::printf("workspace %s\n", workspace > 0 ? "some" : "none");
    descs.push_back(descs[0]);
    print_formats(clone, descs, num_inputs, DataType::kFLOAT);
    descs[0].dims.nbDims = 1;
    const bool ran = clone->enqueue(descs.data(), nullptr, nullptr, nullptr, nullptr, nullptr) == 0;
    std::printf("enqueue of a wrong rank %s\n", ran ? "ran" : "failed");
    clone->destroy();
}

// A collective in a process that has joined no group.
void enqueue_alone(IPluginCreator* creator, const PluginFieldCollection& fields) {
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator->createPlugin("node", &fields));
    const std::vector<PluginTensorDesc> descs = descriptors({{7, 256}}, {DataType::kHALF});
    int32_t memory = 0;
    const void* inputs[] = {&memory};
    void* outputs[] = {&memory};
    const bool ran = plugin->enqueue(descs.data(), nullptr, inputs, outputs, nullptr, nullptr) == 0;
    std::printf("enqueue without a group %s\n", ran ? "ran" : "failed");
    plugin->destroy();
}

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 1;
    using GetCreators = IPluginCreator* const* (*)(int32_t&);
    int32_t num_creators = 0;
    IPluginCreator* const* creators = reinterpret_cast<GetCreators>(dlsym(library, "getPluginCreators"))(num_creators);
    std::printf("creators %d\n", num_creators);

    const int32_t heads = 8, kv_heads = 2, head_dim = 64, top_k = 2, norm = 1;
    const float scale = 0.125f, eps = 1e-6f;
    const DataType half = DataType::kHALF, index = DataType::kINT32;
    const PluginField attention[] = {{"num_heads", &heads, PluginFieldType::kINT32, 1},
                                     {"num_kv_heads", &kv_heads, PluginFieldType::kINT32, 1},
                                     {"head_dim", &head_dim, PluginFieldType::kINT32, 1},
                                     {"scale", &scale, PluginFieldType::kFLOAT32, 1},
                                     {"eps", &eps, PluginFieldType::kFLOAT32, 1}};
    probe(creators[0], {5, attention}, {{7, 768}, {64}, {64}, {128, 64}, {7}, {9, 2, 2, 16, 64}, {3, 4}, {4}, {3}},
          {half, half, half, DataType::kFLOAT, index, half, index, index, index});
    const PluginField moe[] = {{"top_k", &top_k, PluginFieldType::kINT32, 1},
                               {"norm_topk_prob", &norm, PluginFieldType::kINT32, 1}};
    probe(creators[1], {2, moe}, {{7, 256}, {7, 8}, {8, 128, 256}, {8, 256, 64}, {8}}, {half, half, half, half, index});
    probe(creators[2], {2, moe}, {{7, 256}, {7, 8}, {8, 128, 256}, {8, 256, 64}, {24, 8}, {7}, {4}, {8}},
          {half, half, half, half, index, index, index, index});
    const PluginFieldCollection none = {0, nullptr};
    probe(creators[5], none, {{7, 256}, {48, 256}}, {half, half});
    probe(creators[6], none, {{20, 256}, {48, 256}}, {half, half});
    probe(creators[7], none, {{7, 256}}, {half});
    const int32_t world_size = 3;
    const PluginField gather[] = {{"world_size", &world_size, PluginFieldType::kINT32, 1}};
    probe(creators[8], {1, gather}, {{7, 256}}, {half});
    enqueue_alone(creators[7], none);
    enqueue_alone(creators[8], {1, gather});
    return creators[1]->createPlugin("node", nullptr) == nullptr ? 0 : 1;
}
