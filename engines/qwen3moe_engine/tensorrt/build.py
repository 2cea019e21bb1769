"""From the export's graph to a plan.

Owns: parsing with the plugins registered, optimisation profiles, and the check that every custom operator became a
plugin layer. Needs no weights.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.manifest import FILE_NAME, Manifest, file_sha256
from qwen3moe_engine.tensorrt.communicator import skipped_collectives
from qwen3moe_engine.tensorrt.flavour import Flavour, LoadedTensorRT
from qwen3moe_engine.tensorrt.plan import Limits, PlanInfo
from qwen3moe_plugins.errors import InputError, name_list
from qwen3moe_plugins.library import KERNELS, find_library

if TYPE_CHECKING:
    from qwen3moe_engine.tensorrt.cuda import Device

# Sizes of the dynamic dimensions in a profile: smallest, the one to optimise for, largest.
Range = tuple[int, int, int]


class BuildError(RuntimeError):
    """TensorRT did not build a plan from a graph that should give one."""


def build_plan(
    export: Path, manifest: Manifest, tensorrt: LoadedTensorRT, limits: Limits, targets: tuple[str, ...]
) -> tuple[bytes, PlanInfo]:
    """Builds for `targets` (such as sm89), or for the GPU present if there are none. Raises InputError, BuildError."""
    flavour = tensorrt.flavour
    check_request(manifest, flavour, limits, targets)
    limits = replace(limits, max_blocks=min(limits.max_blocks, _max_blocks(manifest, limits)))
    gpu = None if targets else _gpu_present(flavour)
    start = time.perf_counter()
    builder, network, _ = parse(export, manifest, tensorrt)
    plugin_layers = _count_plugins(network, manifest, tensorrt)
    config = _configure(builder, network, manifest, tensorrt, limits, targets)
    with skipped_collectives(find_library(KERNELS, tensorrt.plugin_library.parent)):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{export}: TensorRT {tensorrt.version} built no plan; its messages stand above")
    content = bytes(plan)
    info = PlanInfo(
        plan_sha256=hashlib.sha256(content).hexdigest(),
        manifest_sha256=file_sha256(export / FILE_NAME),
        plugins_sha256=file_sha256(tensorrt.plugin_library),
        flavour=flavour.name,
        tensorrt_version=tensorrt.version,
        targets=targets if gpu is None else (gpu.compute_capability,),
        gpu=None if gpu is None else gpu.name,
        dtype=manifest.dtype,
        limits=limits,
        plugin_layers=plugin_layers,
        build_seconds=round(time.perf_counter() - start, 2),
    )
    return content, info


def parse(export: Path, manifest: Manifest, tensorrt: LoadedTensorRT) -> tuple[Any, Any, Any]:
    """Builder, network and parser of the export's graph. Raises BuildError."""
    builder = tensorrt.trt.Builder(tensorrt.logger)
    network = builder.create_network(_network_flags(tensorrt))
    parser = tensorrt.trt.OnnxParser(network, tensorrt.logger)
    graph = export / manifest.graph_of(manifest.dtype, tensorrt.flavour.max_opset)
    if not parser.parse_from_file(str(graph)):
        raise BuildError(f"{graph}: " + "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors)))
    return builder, network, parser


def check_request(manifest: Manifest, flavour: Flavour, limits: Limits, targets: tuple[str, ...]) -> None:
    """Raises InputError if the flavour cannot build this export for these targets."""
    if manifest.dtype not in flavour.dtypes:
        expected = f"{' or '.join(flavour.dtypes)} for TensorRT {flavour.name}"
        raise InputError("export", got=manifest.dtype, expected=expected, remedy="export again with --dtype")
    _check_kernels(manifest)
    unknown = [target for target in targets if target not in flavour.targets]
    if unknown:
        expected = name_list(flavour.targets) if flavour.targets else "none: this TensorRT builds for the GPU present"
        raise InputError("--target", got=name_list(unknown), expected=expected, remedy="choose from these")
    if limits.max_tokens < limits.max_seqs:
        got = f"{limits.max_tokens} below --max-seqs {limits.max_seqs}"
        raise InputError("--max-tokens", got=got, expected="at least one token for each", remedy="raise it")
    if limits.max_context > manifest.dims.max_position_embeddings:
        expected = f"at most {manifest.dims.max_position_embeddings}, as the model has positions"
        raise InputError("--max-context", got=limits.max_context, expected=expected, remedy="lower it")


def _gpu_present(flavour: Flavour) -> Device:
    """The one that a plan without targets is for. Raises InputError."""
    from qwen3moe_engine.tensorrt.cuda import use_device  # plans for named targets need no CUDA

    return use_device(0, "name --target" if flavour.targets else "build where the plan is to run")


def _check_kernels(manifest: Manifest) -> None:
    """Raises InputError if the plugins have no kernel for the model; they would only say so layer by layer."""
    dims = manifest.dims
    requirements = {
        "head_dim": (dims.head_dim, "64 or 128", dims.head_dim in (64, 128)),
        "num_attention_heads": (
            dims.num_heads,
            f"at most 16 times num_key_value_heads {dims.num_kv_heads}",
            dims.num_heads <= 16 * dims.num_kv_heads,
        ),
        "hidden_size": (dims.hidden_size, "a multiple of 64 up to 16384", dims.hidden_size % 64 == 0),
        "num_experts": (dims.num_experts, "at most 512", dims.num_experts <= 512),
        "num_experts_per_tok": (dims.top_k, "at most 16", dims.top_k <= 16),
    }
    for width in {spec.static_shape[-1] for spec in manifest.of_kind("weight") if "experts.down_proj" in spec.name}:
        expected = "a multiple of 8: use --ep, or fewer ranks"
        requirements["an expert's width on a rank"] = (width, expected, width % 8 == 0)
    for name, (got, expected, holds) in requirements.items():
        if not holds:
            raise InputError(f"export: {name}", got=got, expected=expected, remedy="run it with ONNX Runtime")


def _max_blocks(manifest: Manifest, limits: Limits) -> int:
    """TensorRT 8.6 counts the elements of a tensor in 31 bits."""
    dims = manifest.dims
    return (2**31 - 1) // (2 * dims.num_kv_heads * limits.block_size * dims.head_dim)


def _network_flags(tensorrt: LoadedTensorRT) -> int:
    """Explicit batch (the only kind from 10 on, where the flag is ignored), and strong typing where it is a choice."""
    flags = tensorrt.trt.NetworkDefinitionCreationFlag
    names = ["EXPLICIT_BATCH"] + (["STRONGLY_TYPED"] if tensorrt.flavour.strongly_typed else [])
    return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))


def _count_plugins(network: Any, manifest: Manifest, tensorrt: LoadedTensorRT) -> int:
    """The parser inlines an operator whose plugin it does not find, without a word: so they are counted."""
    kind = getattr(tensorrt.trt.LayerType, tensorrt.flavour.plugin_layer)
    found = sum(network.get_layer(index).type == kind for index in range(network.num_layers))
    graph = manifest.graphs[manifest.graph_of(manifest.dtype, tensorrt.flavour.max_opset)]
    expected = sum(graph.op_counts.values())
    if found != expected:
        raise BuildError(f"{found} plugin layers in the network, {expected} operators in the manifest")
    return found


def _configure(
    builder: Any, network: Any, manifest: Manifest, tensorrt: LoadedTensorRT, limits: Limits, targets: tuple[str, ...]
) -> Any:
    trt, config = tensorrt.trt, builder.create_builder_config()
    if tensorrt.flavour.aliased_outputs:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if not tensorrt.flavour.strongly_typed:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_tactic_sources(0)  # its cuBLAS and cuDNN tactics need libraries that nothing else here does
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)  # as 10 does: many contexts a profile
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    for ranges in profile_ranges(manifest, limits):
        profile = builder.create_optimization_profile()
        for name, shapes in profile_shapes(manifest, ranges).items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    return config


def profile_ranges(manifest: Manifest, limits: Limits) -> tuple[dict[str, Range], ...]:
    """Two profiles: steps of few tokens (decoding), and any step. Dimensions by name."""
    width = num_blocks_for(limits.max_context, limits.block_size)
    few = limits.max_seqs
    common = {
        "num_seqs": (1, min(8, few), few),
        "num_seqs_plus_1": (2, min(8, few) + 1, few + 1),
        "max_blocks": (1, max(1, width // 8), width),
        "num_blocks": (1, max(1, limits.max_blocks // 16), limits.max_blocks),
        "block_size": (limits.block_size,) * 3,
        "num_positions": (1, limits.max_context, manifest.dims.max_position_embeddings),
        "num_logits": (1, min(8, few), limits.max_tokens),
    }
    decode = common | {"num_tokens": (1, min(8, few), few)}
    return decode, common | {"num_tokens": (1, limits.max_tokens, limits.max_tokens)}


def profile_shapes(manifest: Manifest, ranges: dict[str, Range]) -> dict[str, list[tuple[int, ...]]]:
    """Smallest, usual and largest shape of every input that has dynamic dimensions."""
    dynamic = [spec for spec in manifest.inputs if any(isinstance(size, str) for size in spec.shape)]
    sizes = {
        spec.name: [ranges[size] if isinstance(size, str) else (size,) * 3 for size in spec.shape] for spec in dynamic
    }
    return {name: list(zip(*per_axis, strict=True)) for name, per_axis in sizes.items()}
