"""Declarations of the qwen3moe operators, and the libraries that implement them in CUDA."""
