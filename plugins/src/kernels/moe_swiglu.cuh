// The gated activation between the two expert products, in fp32.
#pragma once

namespace qwen3moe::moe {

// silu(gate) * up, with errors of a few units in fp32's last place. exp(-gate) may overflow to infinity: the quotient
// is then zero, as it should be. The exact division would double the instructions of gate_up's epilogue.
__device__ __forceinline__ float swiglu(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

}  // namespace qwen3moe::moe
