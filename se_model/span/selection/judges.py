"""The queries of each choice that judge the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.rules import QuerySample
from se_model.span.selection.representatives import representatives


@dataclass(frozen=True)
class Judges:
    """The judging queries of C consecutive choices.

    Attributes:
        queries: [B, H, C, R, D], in the order of the row; zeros where a choice has fewer than R.
        counts: how many each choice has, the same in all heads.
    """

    queries: Tensor
    counts: tuple[int, ...]


def judges_of(q: Tensor, size: int, sample: QuerySample) -> Judges:
    """The judges among every ``size`` consecutive queries, the last ones perhaps fewer. q: [B, H, any, D]."""
    choices = -(-q.shape[2] // size)
    rest = q.shape[2] - (choices - 1) * size
    counts = (*[sample.judges(size)] * (choices - 1), sample.judges(rest))
    pieces = F.pad(q, (0, 0, 0, size - rest)) if rest < size else q
    pieces = pieces.unflatten(2, (choices, size))
    if sample.kind == "stride":
        pieces = pieces[:, :, :, :: sample.number]
    elif sample.kind == "representative" and sample.number < size:
        places = representatives(q, size, sample.number)
        pieces = torch.take_along_dim(pieces, places[..., None], dim=3)
    return Judges(pieces, counts)
