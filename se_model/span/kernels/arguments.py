"""Arguments that the launches of all kernels work out alike."""

from __future__ import annotations

import triton
from torch import Tensor

from se_model.span.kernels import tables
from se_model.span.options import SpanOptions
from se_model.span.triton_package import is_interpreting

_LOG2_E = 1.4426950408889634


def scale_base_2(q: Tensor, options: SpanOptions) -> float:
    """The scale of logits whose exponential is a power of 2."""
    return options.scale_for(q.shape[3]) * _LOG2_E


def strides_of(*tensors: Tensor) -> tuple[int, ...]:
    """Of each tensor the strides of batch, head and token; that of the last dimension is 1."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def row_tile(x: Tensor) -> int:
    """The tile for rows of x [..., D]."""
    return tables.tile_of(x.shape[-1])


def kept_tile(kept: int) -> int:
    """How many of the best a program keeps that looks for ``kept``: a power of two of at least 2."""
    return max(2, triton.next_power_of_2(kept))


def tiling_for(x: Tensor) -> tables.Tiling:
    """The tiles for rows of x [..., D]."""
    return tables.choose_tiling(row_tile(x), x.dtype, interpreted=is_interpreting())
