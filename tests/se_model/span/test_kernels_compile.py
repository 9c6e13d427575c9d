"""The Triton kernels compile for GPUs, fit their shared memory and use their tensor cores, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from se_model.span.rules import OWN_NUMBERS

SCRIPT = Path(__file__).with_name("compile_kernels.py")
ROOT = SCRIPT.parents[3]
SHARED_MEMORY_OF_AN_A100 = 163 * 1024
ATTENTION = {
    "attend_kernel",
    "query_gradients_kernel",
    "chunk_gradients_kernel",
    "span_gradients_kernel",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    # Its own process: kernels that were defined for the interpreter cannot be compiled.
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_kernel_fits_the_shared_memory(compiled):
    for each in compiled:
        assert each["shared"] <= SHARED_MEMORY_OF_AN_A100, each


def test_attention_in_half_precision_uses_tensor_cores_and_keeps_its_registers(compiled):
    halves = [each for each in compiled if each["kernel"] in ATTENTION and "float32" not in each["dtype"]]
    assert len(halves) == 4 * len(ATTENTION)
    for each in halves:
        assert each["tensor_cores"], each
        assert each["spilled"] <= 256, each


def test_keys_of_half_precision_are_compared_on_tensor_cores(compiled):
    halves = [
        each for each in compiled
        if each["kernel"] in ("normalise_kernel", "choose_judged_kernel")
        and each["way"]["SUMMARY"] in OWN_NUMBERS and "float32" not in each["dtype"]
    ]  # fmt: skip
    assert halves
    assert all(each["tensor_cores"] for each in halves)


def test_choosing_keeps_its_registers(compiled):
    """The attention over a block of 128 x 256 numbers, one kind of summary, is too much for them."""
    choosing = [each for each in compiled if each["kernel"] not in {*ATTENTION, "delta_kernel"}]
    assert len({each["kernel"] for each in choosing}) == 6
    for each in choosing:
        if each["way"].get("SUMMARY") != "attention":
            assert each["spilled"] <= 256, each
