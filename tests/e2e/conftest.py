"""The trained model, exported once by the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers.utils import logging

from qwen3moe_export.cli import main

torch.set_num_threads(1)  # matrices this small take ten times longer where two threads share two busy cores
logging.set_verbosity_error()
logging.disable_progress_bar()

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return DATA / "qwen3moe-tiny"


@pytest.fixture(scope="session")
def prompts_file() -> Path:
    return DATA / "prompts.txt"


@pytest.fixture(scope="session")
def export(checkpoint, tmp_path_factory) -> Path:
    """In the checkpoint's dtype, bf16."""
    folder = tmp_path_factory.mktemp("export")
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder
