"""Export of Qwen3-MoE checkpoints: torch reference, torch.export, ONNX, and the comparison of every stage."""
