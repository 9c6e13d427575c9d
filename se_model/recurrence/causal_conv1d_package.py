"""The one place where the package causal-conv1d enters: its CUDA kernel for short causal convolutions.

causal-conv1d 1.4 or newer; importing it needs the CUDA extension that it is built with.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.documents import DocumentBounds


def has_causal_conv1d() -> bool:
    """Whether the package causal-conv1d is installed."""
    return find_spec("causal_conv1d") is not None


def convolution_library(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: DocumentBounds | None = None,
) -> Tensor:
    """`causal_convolution` by causal-conv1d's ``causal_conv1d_fn``; same arguments and results.

    x: [B, L, C], C a multiple of 8; weight: [C, W] for W of 2 to 4; state: [B, W - 1, C], which is put in
    front of x, a copy of both: the kernel takes either a state or documents.
    """
    convolve = importlib.import_module("causal_conv1d").causal_conv1d_fn
    context = weight.shape[1] - 1
    documents = None if cu_seqlens is None else cu_seqlens.index(x.device).to(torch.int32)[None]
    if state is not None:
        x = torch.cat([state.to(x.dtype), x], dim=1)
        if documents is not None:
            documents = F.pad(documents, (context, 0))  # the state belongs to document 0
    elif x.stride(2) != 1 or any(each % 8 for each in (x.stride(0), x.stride(1), x.storage_offset())):
        x = x.contiguous()
    bias = None if bias is None else bias.to(weight.dtype)
    y: Tensor = convolve(x.transpose(1, 2), weight, bias, seq_idx=documents).transpose(1, 2)
    return y if state is None else y[:, context:]
