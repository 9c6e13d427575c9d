"""A training says which backend computes the recurrences of its model, and how to get the kernels."""

from __future__ import annotations

import copy
import re

import pytest

from pipelines.models.architecture import attached_skeleton
from pipelines.models.configuration import Described
from pipelines.models.recurrences import (
    Found,
    planned_recurrences,
    recurrences_in,
    recurrences_text,
    refusal_of_wish,
)
from pipelines.recipe.keys.attention import FullSection
from se_model.baselines import FullConfig
from tests.se_model.tiny_models import CONFIGS

MAMBA2 = Found("Mamba-2", 58, "mamba-ssm", False, "its inputs")
CONVOLUTION = Found("the short convolution", 1, "causal-conv1d", False, "a sum")


def test_on_a_cpu_torch_computes_them_and_no_kernel_is_missed() -> None:
    assert recurrences_text([MAMBA2, CONVOLUTION], "auto", gpu=False) == (
        "Mamba-2 in 58 layers: torch (chunked), which keeps its inputs; "
        "the short convolution in 1 layer: torch (chunked), which keeps a sum"
    )


def test_on_a_gpu_missing_kernels_come_with_the_line_that_installs_them() -> None:
    there = MAMBA2._replace(installed=True)
    text = recurrences_text([there, CONVOLUTION], "auto", gpu=True)
    assert text.startswith(
        "Mamba-2 in 58 layers: kernels of mamba-ssm; the short convolution in 1 layer: torch"
    )
    assert text.endswith("pip install --no-build-isolation causal-conv1d")
    assert "pip" not in recurrences_text([there, CONVOLUTION._replace(installed=True)], "auto", gpu=True)


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
    found = recurrences_in(attached_skeleton(CONFIGS[name], FullConfig()))
    assert {each.package for each in found} == packages


def test_models_are_asked_before_they_are_loaded() -> None:
    found = planned_recurrences(Described.of(CONFIGS["bamba"]), FullSection())
    assert [each.name for each in found] == ["Mamba-2", "the short convolution"]
    assert planned_recurrences(Described.of(CONFIGS["llama"]), FullSection()) == []


def test_the_text_is_that_of_the_backend_that_is_asked_for() -> None:
    there = MAMBA2._replace(installed=True)
    assert "torch (chunked), which keeps its inputs" in recurrences_text([there], "chunked", gpu=True)
    assert "token by token (naive)" in recurrences_text([there], "naive", gpu=True)
    limited = there._replace(limit="takes chunks of a power of two tokens, not 48 (model.layers.0.mamba)")
    assert "torch (chunked)" in recurrences_text([limited], "auto", gpu=True)
    absent = recurrences_text([MAMBA2], "library", gpu=True)
    assert "kernels of mamba-ssm" in absent
    assert "workers without them refuse to start: pip install --no-build-isolation mamba-ssm" in absent


@pytest.mark.parametrize(
    ("wish", "found", "gpu", "here", "reason"),
    [
        ("chunked", [], False, True, "chunked is asked for, but the model has no recurrence"),
        ("naive", [], True, True, "naive is asked for, but the model has no recurrence"),
        ("library", [MAMBA2], False, True, "library computes on GPUs, and the workers have none"),
        ("library", [MAMBA2, CONVOLUTION], True, True, "pip install .* causal-conv1d mamba-ssm"),
        (
            "library",
            [MAMBA2._replace(limit="takes less")],
            True,
            False,
            "of mamba-ssm for Mamba-2 takes less",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_has_a_reason(
    wish: str, found: list[Found], gpu: bool, here: bool, reason: str
) -> None:
    assert re.search(reason, refusal_of_wish(found, wish, gpu=gpu, here=here) or "")


@pytest.mark.parametrize(
    ("wish", "found", "gpu", "here"),
    [
        ("auto", [], False, True),
        ("chunked", [MAMBA2], False, True),
        ("naive", [MAMBA2], True, True),
        ("library", [MAMBA2], True, False),
        ("library", [MAMBA2._replace(installed=True)], True, True),
    ],
)
def test_a_wish_that_can_be_met_has_none(wish: str, found: list[Found], gpu: bool, here: bool) -> None:
    assert refusal_of_wish(found, wish, gpu=gpu, here=here) is None


@pytest.mark.parametrize(
    ("name", "changed", "limits"),
    [
        ("bamba", {}, {None}),
        ("bamba", {"mamba_chunk_size": 48}, {"takes chunks of a power of two tokens, not 48", None}),
        ("qwen3_next", {"linear_key_head_dim": 264}, {"takes keys of up to 256 numbers, not 264", None}),
        ("jamba", {"mamba_d_conv": 5}, {"takes windows of 2 to 4 tokens, not 5", None}),
    ],
)
def test_what_kernels_do_not_serve_in_a_model_is_found(
    name: str, changed: dict[str, int], limits: set[str | None]
) -> None:
    configuration = copy.deepcopy(CONFIGS[name])
    for key, value in changed.items():
        assert hasattr(configuration, key)
        setattr(configuration, key, value)
    found = recurrences_in(attached_skeleton(configuration, FullConfig()))
    assert {each.limit and each.limit.partition(" (")[0] for each in found} == limits
