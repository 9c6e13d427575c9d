"""The one place where the package mamba-ssm enters: its kernels for Mamba-2 (Triton) and Mamba-1 (CUDA).

mamba-ssm 2.2.5 or newer; importing it needs the CUDA extension that it is built with.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def has_mamba_ssm() -> bool:
    """Whether the package mamba-ssm is installed."""
    return find_spec("mamba_ssm") is not None


def mamba_chunk_scan() -> Callable[..., Any]:
    """Mamba-2's ``mamba_chunk_scan_combined``."""
    scan: Callable[..., Any]
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    return scan


def selective_scan_function() -> Callable[..., Any]:
    """Mamba-1's ``selective_scan_fn``."""
    scan: Callable[..., Any]
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return scan
