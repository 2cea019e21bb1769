"""TensorRT engines: building a plan from an export, and executing it. Imports TensorRT and CUDA only when asked to."""
