"""Token-wise views of the documents of a packed row."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.documents import document_bounds


def document_index(cu_seqlens: Tensor, length: int, batch: int = 1) -> Tensor:
    """The document that each token belongs to, counted from 0: int64 [L].

    cu_seqlens: int [N + 1], from 0 to ``length``, strictly increasing; the batch must be one row.

    Raises:
        ValueError: if ``cu_seqlens`` is not that.
    """
    document_bounds(cu_seqlens, length, batch)
    token = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, token, right=True) - 1


def document_positions(cu_seqlens: Tensor, length: int, batch: int = 1) -> Tensor:
    """The place of each token in its own document, counted from 0: int64 [L]; see `document_index`."""
    start = cu_seqlens[document_index(cu_seqlens, length, batch)]
    return torch.arange(length, device=cu_seqlens.device) - start
