"""What the tests of every folder share: where GPU tests run, and that none of them skips there.

A run whose -m names `gpu` or `multi_gpu` is a GPU lane (`pytest -m gpu`). Elsewhere tests so marked are deselected. On
the lane they have to run: a missing device or a skip is a failure, since a lane that skips passes for one that works.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from qwen3moe_plugins.library import LibraryNotFoundError, find_library

# Set before torch and numpy load. With as many workers as cores, two threads a worker only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--export", type=Path, help="an fp16 export of the trained model, for a machine without torch")


def is_gpu_lane(config: pytest.Config) -> bool:
    """Whether the -m expression asks for GPU tests."""
    return re.search(r"(?<!not )\b(multi_)?gpu\b", config.option.markexpr) is not None


def num_gpus_needed(item: pytest.Item) -> int:
    if (marker := item.get_closest_marker("multi_gpu")) is not None:
        return int(marker.kwargs.get("count", marker.args[0] if marker.args else 2))
    return 1 if item.get_closest_marker("gpu") else 0


def count_gpus() -> int:
    """CUDA devices the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_gpu_lane(config):
        return
    gpu_items = [item for item in items if num_gpus_needed(item)]
    if gpu_items:
        config.hook.pytest_deselected(items=gpu_items)
        items[:] = [item for item in items if not num_gpus_needed(item)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = num_gpus_needed(item)
    if needed and (found := count_gpus()) < needed:
        pytest.fail(f"needs {needed} CUDA device(s), the driver shows {found}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if num_gpus_needed(item):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips as a whole (importorskip) hides its GPU tests: its text is all there is to tell by."""
    report = yield
    on_lane = isinstance(collector, pytest.Module) and is_gpu_lane(collector.config)
    if on_lane and re.search(r"\bmark\.(multi_)?gpu\b", collector.path.read_text(encoding="utf-8")):
        fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"a GPU lane must not skip: {reason}"


@pytest.fixture(scope="session")
def built_library() -> Callable[[str], Path]:
    """The path of a plugin library by its file name; a test skips where they are not built, or fails on a GPU lane."""

    def find(name: str) -> Path:
        try:
            return find_library(name)
        except LibraryNotFoundError as error:
            pytest.skip(str(error))

    return find
