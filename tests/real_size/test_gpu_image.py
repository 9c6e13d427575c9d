"""The image of a cluster's nodes has every kernel of the `gpu` extra, compiled against the torch it runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()

CUDA_OF_TORCH = {"2.13": "13.0"}
"""What torch's wheels on PyPI are built with: `cuda-toolkit==13.0.3` among the requirements of 2.13.0."""

TRITON_OF_TORCH = {"2.13": "3.7.1"}
"""Which triton they require."""

MODULES = {
    "flash-attn": "flash_attn_2_cuda",
    "mamba-ssm": "selective_scan_cuda",
    "causal-conv1d": "causal_conv1d_cuda",
    "triton": "triton",
    "flash-linear-attention": "fla",
}
"""What to import of a package to know that it is there and fits torch: its compiled part, if it has one."""

COMPILED = {name for name, module in MODULES.items() if module.endswith("_cuda")}


def gpu_extra() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"]["gpu"])


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def instructions(stage: str) -> list[str]:
    """The instructions of one build stage, by its name or, for the last, by its base; each on one line."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    stages = re.split(r"(?m)^(?=FROM )", joined)
    (found,) = [each for each in stages if each.splitlines()[0].endswith(stage)]
    return [line for line in found.splitlines() if line]


def test_every_kernel_is_in_the_extra_pinned_and_imported_when_the_image_is_made() -> None:
    assert gpu_extra() == set(MODULES)
    assert gpu_extra() <= set(pins())
    final = instructions("slim-bookworm")
    (install,) = [line for line in final if "'.[gpu]'" in line]
    assert "--constraint constraints.txt" in install
    (check,) = [line for line in final if line.startswith('RUN python -c "')]
    imported = set(re.findall(r"\w+", " ".join(re.findall(r"\bimport ([\w, ]+);", check))))
    assert set(MODULES.values()) <= imported
    assert final.index(check) > final.index(install)


def test_what_is_compiled_is_compiled_against_the_torch_and_python_that_the_image_runs() -> None:
    kernels = instructions("AS kernels")
    (build,) = [line for line in kernels if "pip wheel" in line]
    assert set(build.split()) >= {"--no-build-isolation", "--no-deps", "--constraint", *COMPILED}
    (torch,) = [line for line in kernels if re.search(r"pip install .* torch\b", line)]
    assert kernels.index(torch) < kernels.index(build)
    (install,) = [line for line in instructions("slim-bookworm") if "'.[gpu]'" in line]
    # Nothing is built where there is no compiler.
    assert "from=kernels,source=/wheels,target=/wheels" in install
    assert "--find-links /wheels" in install
    (only,) = re.findall(r"--only-binary (\S+)", install)
    assert set(only.split(",")) == COMPILED
    for line in (torch, install):  # a build for machines without GPUs, as constraints.txt may name it
        assert r"s/^(torch==[0-9.]+)\+.*/\1/" in line
    bases = re.findall(r"(?m)^FROM (python:\S+)", DOCKERFILE)
    assert bases == ["python:${PYTHON}-bookworm", "python:${PYTHON}-slim-bookworm"]


def test_compiler_and_triton_are_those_of_the_pinned_torch() -> None:
    torch = ".".join(pins()["torch"].split(".")[:2])
    arguments = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", DOCKERFILE))
    assert arguments["CUDA"] == CUDA_OF_TORCH[torch]
    assert "FROM nvidia/cuda:${CUDA}.2-devel-ubuntu22.04 AS cuda" in DOCKERFILE
    assert pins()["triton"] == TRITON_OF_TORCH[torch]
    assert pins()["fla-core"] == pins()["flash-linear-attention"]
