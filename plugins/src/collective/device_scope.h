// What holds for the length of a block: the current device, a stream, device memory.
#pragma once

#include "failure.h"

namespace qwen3moe {

class DeviceScope {
   public:
    explicit DeviceScope(int32_t device) {
        expect_success(cudaGetDevice(&previous_), "cudaGetDevice");
        expect_success(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceScope() { cudaSetDevice(previous_); }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

   private:
    int previous_ = 0;
};

class ScopedStream {
   public:
    ScopedStream() {
        expect_success(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    ~ScopedStream() { cudaStreamDestroy(stream_); }
    ScopedStream(const ScopedStream&) = delete;
    ScopedStream& operator=(const ScopedStream&) = delete;
    cudaStream_t get() const { return stream_; }

   private:
    cudaStream_t stream_ = nullptr;
};

class ScopedMemory {
   public:
    explicit ScopedMemory(size_t num_bytes) { expect_success(cudaMalloc(&memory_, num_bytes), "cudaMalloc"); }
    ~ScopedMemory() { cudaFree(memory_); }
    ScopedMemory(const ScopedMemory&) = delete;
    ScopedMemory& operator=(const ScopedMemory&) = delete;
    void* get() const { return memory_; }

   private:
    void* memory_ = nullptr;
};

}  // namespace qwen3moe
