"""Torch-free runtime: checkpoints, manifests, paged KV cache, scheduler, executors and the generation loop."""
