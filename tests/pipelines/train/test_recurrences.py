"""A training says which backend computes the recurrences of its model, and how to get the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.models.configuration import Described
from pipelines.train.plan.architecture import skeleton
from pipelines.train.plan.recurrences import planned_recurrences
from pipelines.train.recurrences import Found, recurrences_in, recurrences_text
from se_model.baselines import FullConfig
from tests.pipelines.train.plan.test_sharding import stage_of
from tests.se_model.tiny_models import CONFIGS

MAMBA2 = Found("Mamba-2", 58, "mamba-ssm", False, "its inputs")
CONVOLUTION = Found("the short convolution", 1, "causal-conv1d", False, "a sum")


def test_on_a_cpu_torch_computes_them_and_no_kernel_is_missed() -> None:
    assert recurrences_text([MAMBA2, CONVOLUTION], gpu=False) == (
        "Mamba-2 in 58 layers: torch (chunked), which keeps its inputs; "
        "the short convolution in 1 layer: torch (chunked), which keeps a sum"
    )


def test_on_a_gpu_missing_kernels_come_with_the_line_that_installs_them() -> None:
    there = MAMBA2._replace(installed=True)
    text = recurrences_text([there, CONVOLUTION], gpu=True)
    assert text.startswith(
        "Mamba-2 in 58 layers: kernels of mamba-ssm; the short convolution in 1 layer: torch"
    )
    assert text.endswith("pip install --no-build-isolation causal-conv1d")
    assert "pip" not in recurrences_text([there, CONVOLUTION._replace(installed=True)], gpu=True)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("llama", set()),
        ("mamba2_hybrid", {"mamba-ssm", "causal-conv1d"}),
        ("jamba", {"mamba-ssm", "causal-conv1d"}),
        ("lfm2", {"causal-conv1d"}),
        ("kimi_linear", {"flash-linear-attention", "causal-conv1d"}),
    ],
)
def test_every_kind_of_a_model_is_found(name: str, packages: set[str]) -> None:
    found = recurrences_in(skeleton(CONFIGS[name], FullConfig()))
    assert {each.package for each in found} == packages


def test_the_plan_says_it_of_models_that_have_some() -> None:
    stage = stage_of(Path("corpus"), attention="full")
    said = planned_recurrences(stage, Described.of(CONFIGS["bamba"]), gpu=True)
    assert said["recurrences"].startswith("Mamba-2 in 1 layer: torch (chunked)")
    assert "pip install --no-build-isolation causal-conv1d mamba-ssm" in said["recurrences"]
    assert planned_recurrences(stage, Described.of(CONFIGS["llama"]), gpu=True) == {}
    assert planned_recurrences(stage, None, gpu=True) == {}
