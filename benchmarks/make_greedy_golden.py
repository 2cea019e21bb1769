"""Greedy tokens and logits of the torch reference, as a file that an engine without torch is compared with.

python benchmarks/make_greedy_golden.py tests/data/qwen3moe-tiny tests/data/prompts.txt golden.npz --dtype fp16
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.config import load_config
from qwen3moe_export.load import load_reference
from qwen3moe_export.model import Qwen3MoeForCausalLM


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["bf16", "fp16"]), default="fp16")
@click.option("--max-new-tokens", default=64)
def main(checkpoint: Path, prompts: Path, output: Path, dtype: str, max_new_tokens: int) -> None:
    config, tensors, tokenizer = load_config(checkpoint), open_checkpoint(checkpoint), Tokenizer(checkpoint)
    narrow, truth = (load_reference(config, tensors, name) for name in (dtype, "fp32"))
    arrays = {}
    for index, line in enumerate(line for line in prompts.read_text().splitlines() if line.strip()):
        prompt = tokenizer.encode(line)
        tokens, gaps = generate(narrow, prompt, max_new_tokens)
        arrays[f"prompt.{index}"], arrays[f"tokens.{index}"] = np.array(prompt, np.int32), np.array(tokens, np.int32)
        arrays[f"gaps.{index}"] = np.array(gaps, np.float32)
        sequence = torch.tensor(prompt + tokens[:-1])
        arrays[f"truth.{index}"] = truth(sequence, truth.new_cache()).numpy()
        arrays[f"narrow.{index}"] = narrow(sequence, narrow.new_cache()).float().numpy()
    np.savez_compressed(output, **arrays)


def generate(model: Qwen3MoeForCausalLM, prompt: list[int], max_new_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy tokens, and by how much the best logit of each led the second."""
    cache, tokens, gaps = model.new_cache(), [], []
    new = torch.tensor(prompt)
    for _ in range(max_new_tokens):
        logits = model(new, cache)[-1].float()
        best = logits.topk(2).values
        tokens.append(int(logits.argmax()))
        gaps.append(float(best[0] - best[1]))
        new = torch.tensor(tokens[-1:])
    return tokens, gaps


if __name__ == "__main__":
    main()
