"""Where the documents of a packed row begin and end, and what an attention may be given."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what no attention here can serve.

    q: [B, H, L, D]; k, v: [B, G, L, D] of the same dtype and device; G divides H; L is at least 1.

    Raises:
        ValueError: naming the shapes, dtypes or devices that do not fit together.
    """
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape:
        raise ValueError(f"attention takes q [B, H, L, D] and k, v [B, G, L, D]; got {shapes}")
    batch, heads, length, width = q.shape
    if (k.shape[0], k.shape[3]) != (batch, width):
        raise ValueError(f"q, k and v must agree in batch size and head dimension; got {shapes}")
    if k.shape[2] != length:
        raise ValueError(f"q and k must be equally long (no decoding over a cache here); got {shapes}")
    if length == 0:
        raise ValueError(f"attention needs at least one token; got {shapes}")
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"the number of key/value heads must divide the number of query heads; got {shapes}")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q, k and v must share dtype and device; got {q.dtype} on {q.device}, {k.dtype} on {k.device}, "
            f"{v.dtype} on {v.device}"
        )


def document_bounds(cu_seqlens: Tensor | None, length: int, batch: int = 1) -> tuple[int, ...]:
    """The places where documents begin, and the end of the last: (0, ..., length).

    cu_seqlens: int32 or int64 [N + 1], from 0 to ``length``, strictly increasing; None means one document.

    Raises:
        ValueError: if ``cu_seqlens`` is not that, or comes with more than one row.
    """
    if cu_seqlens is None:
        return (0, length)
    if batch != 1:
        raise ValueError(
            f"cu_seqlens describes one packed row, but the batch has {batch}: flatten the rows into one first"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 2:
        raise ValueError(
            "cu_seqlens must be an int32 or int64 tensor [N + 1] with N >= 1 documents; "
            f"got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )
    bounds = tuple(cu_seqlens.tolist())
    if bounds[0] != 0 or bounds[-1] != length:
        raise ValueError(f"cu_seqlens must run from 0 to L = {length}; got {bounds[0]} to {bounds[-1]}")
    for index, (start, end) in enumerate(pairwise(bounds)):
        if end <= start:
            raise ValueError(
                f"cu_seqlens must increase strictly; entries {index} and {index + 1} are {start} and {end}"
            )
    return bounds
