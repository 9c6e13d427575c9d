"""Lets kernels of mamba-ssm, causal-conv1d and flash-linear-attention compute on a CPU, for tests alone.

Triton's interpreter runs what is Triton. What is CUDA has no interpreter: the function with which the same
package tests its kernel stands in for it, behind the kernel's own demands. All of this is done to a process
of its own: transformers takes any of these packages that it can import, for a CPU too, and fails there.
"""

import builtins
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

FOLDER = Path(sys.prefix, "kernels")
"""Where the Makefile installs the packages: outside of what the environment imports, for us to find alone."""


class LoopCounter(int):
    """What a loop of a kernel counts with: a tensor in Triton, a plain number in its interpreter."""

    def to(self, dtype: object) -> "LoopCounter":
        return self


def count(*bounds: object) -> Iterator[LoopCounter]:
    return map(LoopCounter, builtins.range(*map(int, bounds)))


def measure_nothing(_: object) -> Callable[..., list[float]]:
    """Stands in for Triton's benchmark: the first of a kernel's configurations is taken."""
    return lambda call, quantiles: [0.0] * len(quantiles)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None) -> Tensor:
    """causal-conv1d's kernel: what causal_conv1d.cpp (1.7.0) checks, then what its tests compare with."""
    _, channels, length = x.shape
    assert channels % 8 == 0
    assert x.stride(1) == 1
    assert x.stride(0) % 8 == x.stride(2) % 8 == x.storage_offset() % 8 == 0
    assert 2 <= weight.shape[1] <= 4
    assert bias is None or bias.dtype == weight.dtype
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        assert seq_idx.shape == (1, length)
        assert seq_idx.is_contiguous()
    interface = importlib.import_module("causal_conv1d.causal_conv1d_interface")
    return interface.causal_conv1d_ref(x, weight, bias, seq_idx=seq_idx)


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """mamba-ssm's kernel for Mamba-1: what selective_scan.cpp (2.3.2) checks, then what its tests use."""
    batch, channels, length = u.shape
    assert delta.shape == u.shape
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    assert channels % B.shape[1] == 0
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    return interface.selective_scan_ref(u, delta, A, B, C)


def make_importable() -> None:
    """Makes the three packages importable in this process, as they are on a node that has no GPU."""
    sys.path.append(str(FOLDER))
    # mamba_ssm's own __init__ imports all of its models: a bare package lets parts of it be imported.
    package = ModuleType("mamba_ssm")
    package.__path__ = list(find_spec("mamba_ssm").submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    for extension in ("selective_scan_cuda", "causal_conv1d_cuda"):
        sys.modules[extension] = ModuleType(extension)


def prepare() -> None:
    """Makes the three packages importable and their functions callable on CPU tensors, in this process."""
    make_importable()
    torch.cuda.device = lambda index: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=1)
    importlib.import_module("triton.runtime.autotuner").Autotuner.do_bench = property(measure_nothing)
    importlib.import_module("fla.ops.common.chunk_delta_h").range = count
    importlib.import_module("causal_conv1d").causal_conv1d_fn = convolve
    importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn = scan
