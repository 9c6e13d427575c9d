"""The one place where flash-linear-attention enters: its Triton kernels for the gated delta rule.

fla-core 0.6 or newer (the package flash-linear-attention brings it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def has_fla() -> bool:
    """Whether flash-linear-attention is installed."""
    return find_spec("fla") is not None


def gated_delta_kernels() -> Callable[..., Any]:
    """``chunk_gated_delta_rule``, for one decay of each head."""
    rule: Callable[..., Any]
    rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return rule


def kda_kernels() -> Callable[..., Any]:
    """``chunk_kda``, for one decay of each channel."""
    rule: Callable[..., Any] = importlib.import_module("fla.ops.kda").chunk_kda
    return rule
