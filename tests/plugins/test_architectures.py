"""Which GPUs a library runs on, by the list that it was built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3moe_plugins.architectures import check_architectures, runs_on
from qwen3moe_plugins.errors import InputError

ALL = "80,86,89,90a,100,120"


@pytest.mark.parametrize("gpu", ["80", "86", "87", "89", "90", "100", "103", "120", "121", "130"])
def test_the_usual_list_has_code_for_each(gpu):
    assert runs_on(ALL, gpu)


@pytest.mark.parametrize(
    ("architectures", "gpu"),
    [(ALL, "75"), ("80", "90"), ("90", "90"), ("90a", "89"), ("90a", "100"), ("89", "86"), ("100,90a", "120")],
)
def test_another_gpu_is_refused_by_name(architectures, gpu):
    with pytest.raises(InputError) as refusal:
        check_architectures(Path("lib/libkernels.so"), architectures, "Some GPU", f"sm{gpu}")
    message = str(refusal.value)
    assert f"lib/libkernels.so: got code for {architectures}, expected code for Some GPU (sm{gpu})" in message
    assert f"ARCHS={'90a' if gpu == '90' else gpu}" in message


def test_ptx_of_the_last_one_runs_on_later_gpus():
    assert runs_on("80", "100") and runs_on("90a,80", "120") and not runs_on("80,90a", "120")
