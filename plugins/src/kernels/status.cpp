#include "status.h"

namespace qwen3moe {

std::string& last_error() {
    thread_local std::string message;
    return message;
}

}  // namespace qwen3moe

extern "C" const char* qwen3moe_last_error(void) { return qwen3moe::last_error().c_str(); }

extern "C" const char* qwen3moe_version(void) { return QWEN3MOE_VERSION; }

extern "C" const char* qwen3moe_architectures(void) { return QWEN3MOE_ARCHITECTURES; }
