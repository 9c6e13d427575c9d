"""Full causal attention: what the sparse attentions are measured against, and what evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from se_model.span.documents import Documents, check_inputs, document_bounds
from se_model.span.protocol import Attention
from se_model.span.widths import dense_attention


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, cu_seqlens: Documents | None = None
) -> Tensor:
    """Every token attends to every earlier token of its own document, and to itself.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], G divides H; cu_seqlens: [N + 1] with B = 1. Returns
    [B, H, L, Dv].

    Raises:
        ValueError: on shapes, dtypes or ``cu_seqlens`` that do not fit together.
    """
    check_inputs(q, k, v)
    return attend_within(q, k, v, document_bounds(cu_seqlens, q.shape[2], q.shape[0]), scale)


def attend_within(q: Tensor, k: Tensor, v: Tensor, bounds: tuple[int, ...], scale: float | None) -> Tensor:
    """Causal attention between consecutive ``bounds``, from 0 to L, and never across one.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]. Returns [B, H, L, Dv].
    """
    # One split, whose backward is a single concatenation; a slice's backward fills a whole row's gradient.
    lengths = [end - start for start, end in pairwise(bounds)]
    outputs = [
        dense_attention(queries, keys, values, is_causal=True, scale=scale)
        for queries, keys, values in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


@dataclass(frozen=True)
class FullConfig:
    """Full causal attention; there is nothing to configure."""

    kind: ClassVar[str] = "full"
    draws: ClassVar[bool] = False

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call: the same for all."""
        return full_attention
