"""The exported program as an executor: torch.export's graph, node by node, custom operators in their eager bodies.

Owns: its inputs as torch tensors, the KV pool, and finding the hidden states in the graph. Must not know ONNX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Interpreter, Node

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.logits import HostLogits
from qwen3moe_engine.weights import plan_weights
from qwen3moe_export.capture import TORCH_DTYPES, Captured, capture
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import hidden_state_names
from qwen3moe_export.load import as_torch
from qwen3moe_export.rope import cos_sin_table


class ProgramExecutor:
    """Implements `Executor`; `execute_all` also gives the hidden states."""

    def __init__(
        self, config: Qwen3MoeConfig, checkpoint: Checkpoint, dtype: str, num_blocks: int, block_size: int = 16
    ):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.max_model_len = config.max_position_embeddings
        captured = capture(config, dtype)
        self._interface = captured.interface
        self._watched = _hidden_state_nodes(captured, config.num_layers)
        self._module = captured.program.graph_module
        plans = plan_weights([spec for spec in self._interface.inputs if spec.kind == "weight"], checkpoint)
        self._values: dict[str, Any] = {plan.spec.name: as_torch(plan, dtype) for plan in plans}
        for spec in self._interface.inputs:
            if spec.kind == "expert_map":
                self._values[spec.name] = torch.arange(config.num_experts, dtype=torch.int32)
            elif spec.kind == "rope":
                self._values[spec.name] = cos_sin_table(config, torch.arange(self.max_model_len))
            elif spec.kind == "kv_cache":
                shape = (num_blocks, 2, config.num_kv_heads, block_size, config.head_dim)
                self._values[spec.name] = torch.zeros(shape, dtype=TORCH_DTYPES[dtype])

    def execute(self, batch: Batch) -> HostLogits:
        return HostLogits(self.execute_all(batch)["logits"])

    def close(self) -> None:
        """Nothing outlives the object."""

    @torch.no_grad()
    def execute_all(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Every output but the KV caches, and the hidden states, all fp32, by name."""
        self._values |= {name: torch.from_numpy(array) for name, array in batch.inputs().items()}
        interpreter = _Recorder(self._module, self._watched)
        outputs = interpreter.run(*(self._values[spec.name] for spec in self._interface.inputs))
        named = dict(zip(self._interface.outputs, outputs, strict=True))
        self._values |= {spec.aliases: value for spec, value in named.items() if spec.aliases}
        shown = {spec.name: value for spec, value in named.items() if not spec.aliases} | interpreter.recorded
        return {name: value.float().numpy() for name, value in shown.items()}


class _Recorder(Interpreter):
    """Keeps the values of the nodes in `watched` under their names."""

    def __init__(self, module: torch.fx.GraphModule, watched: dict[Node, str]):
        super().__init__(module)
        self.watched, self.recorded = watched, {}  # type: tuple[dict[Node, str], dict[str, torch.Tensor]]

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            self.recorded[self.watched[n]] = value
        return value


def _hidden_state_nodes(captured: Captured, num_layers: int) -> dict[Node, str]:
    """What each layer's first norm and the final norm read, and the names that the ONNX graph gives them."""
    placeholders = [node for node in captured.program.graph.nodes if node.op == "placeholder"]
    node_of = {spec.name: node for spec, node in zip(captured.interface.inputs, placeholders, strict=True)}
    nodes = {}
    for weight, name in hidden_state_names(num_layers).items():
        (norm,) = node_of[weight].users
        nodes[norm.args[0]] = name
    return nodes
