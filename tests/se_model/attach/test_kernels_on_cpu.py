"""Attached layers compute on a CPU although the packages of kernels for GPUs are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.se_model.attach.kernels_on_cpu import NAMES
from tests.tolerances import F32

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.se_model.attach.kernels_on_cpu"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"is `make test` what installed the kernels? {done.stderr[-3000:]}"
    loaded: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_with_a_cache_and_with_padding_layers_compute_where_those_of_transformers_fail(
    found: dict[str, dict[str, Any]], name: str
) -> None:
    assert found[name]["fails"]
    assert found[name]["off"] <= F32
