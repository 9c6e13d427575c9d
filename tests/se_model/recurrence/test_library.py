"""The field's kernels compute our operators: mamba-ssm, causal-conv1d, flash-linear-attention.

Without a GPU Triton's interpreter runs those that are Triton, and the packages' own functions in PyTorch
stand in for those that are CUDA (`library_on_cpu.py`).
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from se_model.recurrence.causal_conv1d_package import has_causal_conv1d
from se_model.recurrence.fla_package import has_fla
from se_model.recurrence.mamba_ssm_package import has_mamba_ssm
from tests.se_model.recurrence.library_cases import CASES, Case, differences
from tests.tolerances import BF16, F32

SCRIPT = Path(__file__).with_name("library_cases.py")
ROOT = SCRIPT.parents[3]
KERNELS = torch.cuda.is_available() and has_mamba_ssm() and has_causal_conv1d() and has_fla()


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, dict[str, float]]:
    # Its own process: library_on_cpu.py says why.
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path),
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"is `make test` what installed the kernels? {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_every_gradient_are_those_of_the_recurrence(on_cpu, case):
    assert {name: off for name, off in on_cpu[str(case)].items() if not off <= F32} == {}


@pytest.mark.gpu
@pytest.mark.skipif(not KERNELS, reason="needs CUDA, mamba-ssm, causal-conv1d and flash-linear-attention")
@pytest.mark.parametrize("case", [
    *CASES,
    Case("mamba2", (0, 300, 301, 1000), heads=8, width=64, state_size=128, chunk=256),
    Case("delta", (0, 300, 301, 1000), heads=8, groups=4, width=128, state_size=128),
    Case("kda", (0, 300, 301, 1000), heads=4, groups=4, width=128, state_size=128),
    Case("mamba1", (0, 300, 301, 1000), width=64, state=False),
    Case("convolution", (0, 300, 301, 1000), width=512, state_size=4),
], ids=str)  # fmt: skip
def test_kernels_on_a_gpu_compute_the_recurrence(case):
    found = differences(replace(case, chunk=max(case.chunk, 64)), "cuda", torch.bfloat16)
    assert {name: off for name, off in found.items() if not off <= BF16} == {}


def test_the_packages_are_looked_for_but_not_imported():
    code = (
        "import sys; from se_model.recurrence import causal_conv1d_package, fla_package, mamba_ssm_package;"
        "before = set(sys.modules);"  # transformers may have imported them
        "causal_conv1d_package.has_causal_conv1d(); fla_package.has_fla(); mamba_ssm_package.has_mamba_ssm();"
        "print({'causal_conv1d', 'fla', 'mamba_ssm'} & (sys.modules.keys() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
