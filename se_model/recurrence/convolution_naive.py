"""The short convolution as it is written: the oracle of the faster forms."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.documents import Documents, document_bounds


def convolution_naive(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Documents | None = None,
) -> Tensor:
    """y_t = bias + sum over back < W of weight_(W - 1 - back) x_(t - back), within t's document.

    Same arguments and results as `causal_convolution`.

    Raises:
        ValueError: if ``cu_seqlens`` does not fit.
    """
    batch, length, channels = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(batch, weight.shape[1] - 1, channels) if state is None else state
    seen = torch.cat([before, x], dim=1).to(dtype)
    bounds = document_bounds(cu_seqlens, length, batch)
    outputs = []
    for t in range(length):
        begin = max(bound for bound in bounds if bound <= t)
        reach = weight.shape[1] if begin == 0 else min(weight.shape[1], t - begin + 1)
        window = seen[:, t + weight.shape[1] - reach : t + weight.shape[1]]
        outputs.append((window * weight.to(dtype).t()[-reach:]).sum(1))
    y = torch.stack(outputs, dim=1)
    return (y if bias is None else y + bias.to(dtype)).to(x.dtype)
