"""Each operator of the kernel library alone, at the shapes of an export: without torch and TensorRT."""
