"""A model on many ranks against the same model on one: logits of mixed batches, greedy tokens, bytes read.

Owns: the models, what runs, and the comparison. The tests assert it, benchmarks/parallel_cpu.py makes a table of it.

Tolerance: layouts differ from one rank by the order of fp32 sums only. tests/exporter/tolerance.py derives 1e-4 for
that, with logits up to 17; what a wrong split does is a thousand times more. A pipeline alone changes no sum.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.layout import SINGLE, Layout
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.parallel.executor import ParallelExecutor
from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks
from qwen3moe_engine.request import Completion
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_engine.weights import no_progress
from qwen3moe_export.artifact import ExportOptions, export_onnx
from qwen3moe_export.config import load_config, parse_config
from qwen3moe_export.layout import weight_specs

DATA = Path(__file__).resolve().parents[1] / "data"
TOLERANCE = 1e-4

# New tokens of four sequences in each step: prefill, chunked prefill, decode and nothing, mixed.
STEPS = ((20, 5, 0, 1), (12, 1, 17, 0), (1, 0, 15, 1), (27, 1, 1, 1))
NUM_BLOCKS, BLOCK_SIZE = 256, 16

# One key/value head, which every rank shares; biases, a dense layer, and an embedding that is the head as well.
ONE_KV_HEAD = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu", "torch_dtype": "float32",
    "attention_bias": True, "decoder_sparse_step": 1, "head_dim": 16, "hidden_size": 48, "intermediate_size": 40,
    "max_position_embeddings": 256, "mlp_only_layers": [1], "moe_intermediate_size": 24, "norm_topk_prob": False,
    "num_attention_heads": 8, "num_experts": 12, "num_experts_per_tok": 3, "num_hidden_layers": 3,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "vocab_size": 160,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A checkpoint, and 20 prompts of unequal lengths."""

    name: str
    checkpoint: Path
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Difference:
    """The first token of a prompt that is not one rank's, and how far apart one rank's two best logits are there."""

    prompt: int
    position: int
    gap: float


@dataclass(frozen=True)
class Comparison:
    """max_error: of any logit. bytes_read: by rank. num_experts_moved: to rank 0."""

    max_error: float
    num_equal: int
    differences: tuple[Difference, ...]
    bytes_read: tuple[int, ...]
    num_experts_moved: int

    @property
    def num_wrong(self) -> int:
        """Prompts that leave one rank's path where its two best logits are no tie."""
        return sum(difference.gap > TOLERANCE for difference in self.differences)


class Bench:
    """Models, their exports, and what one rank gives; everything made once, in the folder `root`."""

    def __init__(self, root: Path, num_new: int):
        self._root, self._num_new = root, num_new
        self.model = functools.cache(self._model)
        self.export = functools.cache(self._export)
        self._expected = functools.cache(self._run_single)

    def compare(self, name: str, layout: Layout, rebalance_steps: int | None = None) -> Comparison:
        logits, completions = self._expected(name)
        with self.ranks(name, layout, rebalance_steps) as executor:
            found, continued = self._run(executor, name)
            bytes_read = tuple(ready.num_bytes_read for ready in executor.ready)
        differences = tuple(itertools.chain.from_iterable(map(_difference, itertools.count(), completions, continued)))
        max_error = float(np.abs(found - logits).max())
        num_equal = len(completions) - len(differences)
        return Comparison(max_error, num_equal, differences, bytes_read, executor.num_experts_moved)

    @contextmanager
    def ranks(self, name: str, layout: Layout, rebalance_steps: int | None = None) -> Iterator[ParallelExecutor]:
        config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
        ranks = onnxruntime_ranks(self.export(name, layout), self.model(name).checkpoint, config)
        with ParallelExecutor(ranks, rebalance_steps=rebalance_steps) as executor:
            yield executor

    @contextmanager
    def single(self, name: str) -> Iterator[OnnxRuntimeExecutor]:
        (stage,) = load_stages(self.export(name, SINGLE))
        config = OnnxRuntimeConfig(NUM_BLOCKS, BLOCK_SIZE, num_threads=1)
        checkpoint = open_checkpoint(self.model(name).checkpoint)
        yield OnnxRuntimeExecutor(stage.folder, stage.manifest, checkpoint, config, no_progress)

    def step(self, executor: Executor, prompt: tuple[int, ...], num_tokens: int) -> np.ndarray:
        """Logits of a step of so many tokens, the prompt's over and over."""
        tokens = np.resize(np.array(prompt, np.int32), num_tokens)
        blocks = list(range(num_blocks_for(num_tokens, BLOCK_SIZE)))
        return executor.execute(pack_batch([SequenceStep(tokens, 0, blocks)], BLOCK_SIZE)).rows()

    def _model(self, name: str) -> Model:
        if name == "trained":
            checkpoint = DATA / "qwen3moe-tiny"
            lines = (DATA / "prompts.txt").read_text().splitlines()
            return Model(name, checkpoint, tuple(tuple(Tokenizer(checkpoint).encode(line)) for line in lines))
        rng = np.random.default_rng(1)
        prompts = tuple(tuple(rng.integers(160, size=length).tolist()) for length in range(1, 60, 3))
        return Model(name, write_random(self._root / name, ONE_KV_HEAD), prompts)

    def _export(self, name: str, layout: Layout, dtype: str = "fp32") -> Path:
        folder = self._root / f"{name} {layout} {dtype}"
        export_onnx(load_config(self.model(name).checkpoint), ExportOptions(dtype, layout=layout), (), folder)
        return folder

    def _run_single(self, name: str) -> tuple[np.ndarray, list[Completion]]:
        with self.single(name) as executor:
            return self._run(executor, name)

    def _run(self, executor: Executor, name: str) -> tuple[np.ndarray, list[Completion]]:
        """Logits of all tokens of the mixed batches, and continuations of the prompts by the engine."""
        vocab_size = load_config(self.model(name).checkpoint).vocab_size
        logits = np.concatenate([executor.execute(batch).rows().copy() for batch in mixed_batches(vocab_size)])
        scheduler = Scheduler(BlockManager(NUM_BLOCKS, BLOCK_SIZE), executor.max_model_len, 64, max_seqs=20)
        engine = Engine(executor, scheduler, vocab_size, eos_token_ids=())
        params = SamplingParams(self._num_new, ignore_eos=True, logprobs=2)
        return logits, engine.generate(self.model(name).prompts, params)


def mixed_batches(vocab_size: int) -> list[Batch]:
    """STEPS, packed; the blocks of a sequence do not lie side by side."""
    rng, lengths = np.random.default_rng(0), np.sum(STEPS, axis=0)
    tokens = [rng.integers(vocab_size, size=length).astype(np.int32) for length in lengths]
    blocks = iter(rng.permutation(NUM_BLOCKS).tolist())
    tables = [[next(blocks) for _ in range(num_blocks_for(int(length), BLOCK_SIZE))] for length in lengths]
    bounds = np.cumsum([[0] * len(lengths), *STEPS], axis=0).tolist()
    return [
        pack_batch(
            [SequenceStep(tokens[i][start[i] : end[i]], start[i], tables[i]) for i in range(len(lengths))], BLOCK_SIZE
        )
        for start, end in itertools.pairwise(bounds)
    ]


def write_random(folder: Path, values: dict) -> Path:
    """A checkpoint of `values` in the published layout, with weights that tell experts and heads apart."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    rng, tensors = np.random.default_rng(0), {}
    for spec in weight_specs(parse_config(values, "values"), "fp32"):
        for name, shape in spec.source_shapes().items():
            noise = rng.standard_normal(shape, np.float32)
            if "norm" in name:
                tensors[name] = 1 + np.float32(0.3) * noise
            else:
                tensors[name] = noise * np.float32(0.3 if len(shape) == 1 else 2 * shape[-1] ** -0.5)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _difference(prompt: int, expected: Completion, found: Completion) -> list[Difference]:
    for position, (wanted, got) in enumerate(zip(expected.token_ids, found.token_ids, strict=True)):
        if wanted != got:
            (_, first), (_, second) = expected.logprobs[position].best
            return [Difference(prompt, position, first - second)]
    return []
