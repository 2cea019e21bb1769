"""Whatever is wrong with what the user gave: one clear line, exit code 2, and nothing written.

A case is a row of CASES: how it spoils the folder it runs in, the command line, and what the message must say. Each
runs in a new folder with a good checkpoint in `checkpoint` and a good export of it in `export`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen3moe_export.cli import main

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG, MANIFEST = "checkpoint/config.json", "export/manifest.json"

Spoil = Callable[[], object]  # called in the folder of the case


@dataclass(frozen=True)
class Case:
    """says: parts of the one line of the message, in order. usage: the line is click's own, behind its usage hint."""

    spoil: Spoil
    command: str
    says: tuple[str, ...]
    usage: bool = False


def nothing() -> None:
    pass


def write(path: str, text: str) -> Spoil:
    return lambda: Path(path).write_text(text)


def remove(path: str) -> Spoil:
    return lambda: Path(path).unlink()


def cut(path: str, size: int) -> Spoil:
    return lambda: os.truncate(path, size)


def edit(path: str, *keys: str | int, to: Any) -> Spoil:
    """Sets one value of a JSON file."""

    def apply() -> None:
        values = target = json.loads(Path(path).read_text())
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = to
        Path(path).write_text(json.dumps(values))

    return apply


def drop(path: str, key: str) -> Spoil:
    def apply() -> None:
        values = json.loads(Path(path).read_text())
        del values[key]
        Path(path).write_text(json.dumps(values))

    return apply


def also(*spoils: Spoil) -> Spoil:
    return lambda: [spoil() for spoil in spoils]


ONNX = "onnx checkpoint -o out"
PACK = "pack export --weights checkpoint"
IDS = "generate export --weights checkpoint --prompt-ids 5,9,77"
TEXT = "generate export --weights checkpoint --prompt Hello"
FILE = "generate export --weights checkpoint --prompts p.txt"
SMALLER = edit(CONFIG, "num_hidden_layers", to=3)

CASES: dict[str, Case] = {
    # config.json
    "no checkpoint": Case(nothing, "onnx nowhere -o out", ("nowhere", "no config.json")),
    "no config": Case(remove(CONFIG), ONNX, ("checkpoint", "no config.json", "config.json")),
    "config cut off": Case(cut(CONFIG, 100), ONNX, (CONFIG, "invalid JSON", "JSON object")),
    "config in UTF-16": Case(lambda: Path(CONFIG).write_bytes(b"\xff\xfe{\0"), ONNX, (CONFIG, "JSON")),
    "config a list": Case(write(CONFIG, "[]"), ONNX, (CONFIG, "list", "JSON object")),
    "another architecture": Case(edit(CONFIG, "model_type", to="llama"), ONNX, ("model_type", "llama", "qwen3_moe")),
    "sliding window": Case(edit(CONFIG, "use_sliding_window", to=True), ONNX, ("use_sliding_window", "True", "False")),
    "another activation": Case(edit(CONFIG, "hidden_act", to="relu"), ONNX, ("hidden_act", "relu", "silu")),
    "unknown rope": Case(
        edit(CONFIG, "rope_scaling", to={"rope_type": "longrope", "factor": 2.0}),
        ONNX,
        ("rope_type", "longrope", "yarn"),
    ),
    "fp8 checkpoint": Case(
        edit(CONFIG, "quantization_config", to={"quant_method": "fp8"}), ONNX, ("quantization_config", "fp8", "bf16")
    ),
    "1M config": Case(
        edit(CONFIG, "dual_chunk_attention_config", to={"chunk_size": 4}), ONNX, ("dual_chunk_attention_config",)
    ),
    "shared expert": Case(
        edit(CONFIG, "shared_expert_intermediate_size", to=64), ONNX, ("shared_expert_intermediate_size", "64", "0")
    ),
    "unknown key": Case(edit(CONFIG, "hidden_sise", to=64), ONNX, (CONFIG, "unknown keys hidden_sise")),
    "missing key": Case(drop(CONFIG, "vocab_size"), ONNX, ("vocab_size", "nothing", "an integer")),
    "a size that is no number": Case(edit(CONFIG, "head_dim", to="64"), ONNX, ("head_dim", "'64'", "an integer")),
    "heads that do not divide": Case(
        edit(CONFIG, "num_key_value_heads", to=3), ONNX, ("num_key_value_heads", "3", "4")
    ),
    "end of sequence": Case(
        write("checkpoint/generation_config.json", '{"eos_token_id": "</s>"}'),
        ONNX,
        ("eos_token_id", "</s>", "integer"),
    ),
    # the checkpoint's weights
    "no weights": Case(
        lambda: [f.unlink() for f in Path("checkpoint").glob("model*")], PACK, ("checkpoint", "no weights")
    ),
    "missing shard": Case(remove(f"checkpoint/{SECOND}"), PACK, ("checkpoint", f"no {SECOND}", "every shard")),
    "shard cut off": Case(cut(f"checkpoint/{FIRST}", 2_000_000), PACK, (FIRST, "whole safetensors file", "fetch")),
    "shard a Git LFS pointer": Case(write(f"checkpoint/{FIRST}", "version https://git-lfs"), PACK, (FIRST, "fetch")),
    "index no JSON": Case(cut(f"checkpoint/{INDEX}", 50), PACK, (INDEX, "weight_map")),
    "tensor in the index alone": Case(
        edit(f"checkpoint/{INDEX}", "weight_map", "model.gone", to=FIRST), PACK, ("in no shard: model.gone",)
    ),
    "index points to another shard": Case(
        edit(f"checkpoint/{INDEX}", "weight_map", "lm_head.weight", to=FIRST), PACK, (f"lm_head.weight in {SECOND}",)
    ),
    "weights of a deeper model": Case(
        also(SMALLER, lambda: run(ONNX)), "pack out --weights checkpoint", ("nothing takes", "model.layers.3.", "more")
    ),
    "weights of a shallower model": Case(
        also(edit(CONFIG, "num_hidden_layers", to=5), lambda: run(ONNX)),
        "pack out --weights checkpoint",
        ("no tensor", "model.layers.4.", "more"),
    ),
    "weights of a wider model": Case(
        also(edit(CONFIG, "moe_intermediate_size", to=32), lambda: run(ONNX)),
        "generate out --weights checkpoint --prompt-ids 1",
        ("down_proj.weight [128, 64] instead of [128, 32]", "config.json"),
    ),
    "no such weights": Case(nothing, "pack export --weights nowhere", ("nowhere", "no such path", "a folder")),
    "not a checkpoint": Case(nothing, "pack export --weights export/model.onnx", ("export/model.onnx", "no weights")),
    # the manifest and the graphs
    "no export": Case(nothing, "pack nowhere --weights checkpoint", ("nowhere", "no manifest.json", "onnx")),
    "checkpoint for an export": Case(nothing, "generate checkpoint --weights checkpoint --prompt-ids 1", ("manifest",)),
    "manifest cut off": Case(cut(MANIFEST, 999), IDS, (MANIFEST, "invalid JSON", "export again")),
    "manifest of another format": Case(edit(MANIFEST, "format", to=0), IDS, ("format", "0", "1")),
    "manifest without dims": Case(drop(MANIFEST, "dims"), PACK, (MANIFEST, "no dims", "the fields")),
    "manifest with a wrong type": Case(edit(MANIFEST, "dims", "top_k", to="4"), IDS, ("dims.top_k", "str", "int")),
    "manifest with an unknown field": Case(edit(MANIFEST, "inputs", 0, "color", to=1), IDS, ("inputs[0]", "color")),
    "no graph": Case(remove("export/model.fp32.onnx"), IDS, ("model.fp32.onnx", "no file", "manifest")),
    "another graph": Case(write("export/model.onnx", "changed"), IDS, ("model.onnx", "sha256", "export again")),
    "export of embeddings": Case(
        lambda: run(f"{ONNX} --inputs-embeds"), "generate out --weights checkpoint --prompt-ids 1", ("--inputs-embeds",)
    ),
    # prompts
    "ids that are none": Case(nothing, IDS.replace("9", "nine"), ("--prompt-ids", "5,nine,77", "integers")),
    "id outside of the vocabulary": Case(nothing, IDS.replace("77", "2048"), ("prompt", "2048", "0 to 2047")),
    "negative id": Case(nothing, IDS.replace("77", "-1"), ("prompt", "-1", "0 to 2047")),
    "empty prompt": Case(nothing, [*TEXT.split()[:-1], ""], ("prompt", "no token", "at least one")),
    "prompt too long": Case(
        nothing, f"{IDS} --max-new-tokens 5000", ("3 prompt + 5000 new tokens", "4096", "--max-new-tokens")
    ),
    "no file of prompts": Case(
        nothing, FILE.replace("p.txt", "nowhere.txt"), ("--prompts", "nowhere.txt", "text file")
    ),
    "empty file of prompts": Case(write("p.txt", " \n\n"), FILE, ("p.txt", "no line", "a prompt a line")),
    "prompts not in UTF-8": Case(lambda: Path("p.txt").write_bytes(b"caf\xe9"), FILE, ("p.txt", "UTF-8", "convert")),
    "no tokenizer": Case(
        remove("checkpoint/tokenizer.json"), TEXT, ("no tokenizer.json", "checkpoint", "--prompt-ids")
    ),
    "tokenizer that is none": Case(write("checkpoint/tokenizer.json", "{}"), TEXT, ("tokenizer.json", "fetch")),
    "tokenizer that is not there": Case(nothing, f"{IDS} --tokenizer nowhere", ("nowhere", "no tokenizer.json")),
    # options and outputs
    "unknown command": Case(nothing, "export checkpoint", ("No such command", "export"), usage=True),
    "unknown dtype": Case(nothing, f"{ONNX} --dtype fp8", ("--dtype", "fp8", "bf16"), usage=True),
    "no output": Case(nothing, "onnx checkpoint", ("Missing option", "--output"), usage=True),
    "output a file": Case(write("out", ""), ONNX, ("--output", "out", "is a file"), usage=True),
    "output below a file": Case(
        nothing, "onnx checkpoint -o checkpoint/config.json/out", (CONFIG, "expected a path to read or write")
    ),
    "no new tokens": Case(nothing, f"{IDS} --max-new-tokens 0", ("--max-new-tokens", "0"), usage=True),
    # sampling
    "temperature below 0": Case(nothing, f"{IDS} --temperature -1", ("temperature", "-1", "0 or above", "greedy")),
    "temperature not a number": Case(nothing, f"{IDS} --temperature nan", ("temperature", "nan", "0 or above")),
    "temperature in words": Case(nothing, f"{IDS} --temperature hot", ("--temperature", "hot"), usage=True),
    "top_k below 0": Case(nothing, f"{IDS} --top-k -1", ("top_k", "-1", "an integer", "0 is off")),
    "top_k in halves": Case(nothing, f"{IDS} --top-k 1.5", ("--top-k", "1.5"), usage=True),
    "top_p above 1": Case(nothing, f"{IDS} --top-p 90", ("top_p", "90", "0 to 1", "1 is off")),
    "min_p above 1": Case(nothing, f"{IDS} --min-p 1.01", ("min_p", "1.01", "0 to 1")),
    "presence penalty": Case(nothing, f"{IDS} --presence-penalty 3", ("presence_penalty", "3", "-2 to 2")),
    "frequency penalty": Case(nothing, f"{IDS} --frequency-penalty -3", ("frequency_penalty", "-3", "-2 to 2")),
    "repetition penalty": Case(nothing, f"{IDS} --repetition-penalty 0", ("repetition_penalty", "0", "1 is off")),
    "seed below 0": Case(nothing, f"{IDS} --seed -5", ("seed", "-5", "0 to 18446744073709551615")),
    "too many logprobs": Case(nothing, f"{IDS} --json --logprobs 21", ("logprobs", "21", "0 to 20")),
    "logprobs without --json": Case(nothing, f"{IDS} --logprobs 1", ("--logprobs", "--json"), usage=True),
    "more new tokens at least than at most": Case(
        nothing, f"{IDS} --min-new-tokens 65", ("min_new_tokens", "65", "at most max_new_tokens, 64")
    ),
    "empty stop string": Case(nothing, [*IDS.split(), "--stop", ""], ("stop", "''", "none of them empty")),
    "stop string without a tokenizer": Case(
        remove("checkpoint/tokenizer.json"), f"{IDS} --stop x", ("stop", "a tokenizer", "--tokenizer")
    ),
    "two kinds of prompt": Case(nothing, f"{IDS} --prompt Hello", ("exactly one", "--prompts"), usage=True),
    "no prompt": Case(nothing, "generate export --weights checkpoint", ("exactly one",), usage=True),
    "no --weights": Case(nothing, "generate export --prompt Hello", ("Missing option", "--weights"), usage=True),
    "pack into another format": Case(nothing, f"{PACK} -o w.bin", ("w.bin", ".safetensors", "rename")),
    "pack into no folder": Case(nothing, f"{PACK} -o no/w.safetensors", ("no/w.safetensors", "No such file")),
    "pack onto the checkpoint": Case(
        nothing, f"{PACK} -o checkpoint/{FIRST}", (FIRST, "the checkpoint itself", "another name")
    ),
    # verify and inspect
    "inspect nothing": Case(nothing, "inspect nowhere", ("nowhere", "no config.json")),
    "inspect a broken export": Case(remove("export/model.onnx"), "inspect export", ("model.onnx", "no file")),
    "inspect a missing shard": Case(remove(f"checkpoint/{SECOND}"), "inspect checkpoint", (f"no {SECOND}",)),
    "verify nothing": Case(nothing, "verify nowhere", ("nowhere",)),
    "verify a missing shard": Case(remove(f"checkpoint/{SECOND}"), "verify checkpoint", (f"no {SECOND}",)),
}


def arguments(command: str | list[str]) -> list[str]:
    return command.split() if isinstance(command, str) else command


def run(command: str | list[str]) -> Any:
    return CliRunner().invoke(main, arguments(command), prog_name="qwen3moe-export")


def listing() -> dict[str, tuple[int, int]]:
    """Every path below the current folder, with size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in Path().rglob("*")}


def assert_one_clear_line(stderr: str, case: Case) -> None:
    *before, line = stderr.splitlines()
    if case.usage:
        assert before[0].startswith("Usage: qwen3moe-export") and "--help" in before[1]
    else:
        assert not before and ": got " in line and ", expected " in line and "; " in line, stderr
    assert line.startswith("Error: ") and len(line) < 600
    position = 0
    for part in case.says:
        position = line.find(part, position)
        assert position >= 0, f"{part!r} is not said, or not in its place: {line}"


@pytest.fixture
def folder(tmp_path, monkeypatch, checkpoint, export) -> Path:
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    shutil.copytree(export, tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", CASES)
def test_bad_input(folder, what):
    case = CASES[what]
    case.spoil()
    before = listing()
    result = run(case.command)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2 and not result.stdout
    assert_one_clear_line(result.stderr, case)
    assert listing() == before, "something was written"


@pytest.mark.parametrize("what", ["unknown key", "missing shard", "output below a file", "unknown dtype"])
def test_bad_input_in_a_process(folder, what):
    case = CASES[what]
    case.spoil()
    code = "from qwen3moe_export.cli import main; main(prog_name='qwen3moe-export')"
    done = subprocess.run([sys.executable, "-c", code, *arguments(case.command)], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert_one_clear_line(done.stderr, case)


def test_there_are_many_cases():
    assert len(CASES) >= 30
