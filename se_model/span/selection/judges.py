"""The queries of each choice that judge the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.rules import QuerySample

# Queries measured at a time: bounds the memory of working in float64.
_TOKENS_AT_ONCE = 16_384


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
        pieces = pieces.gather(3, places[..., None].expand(*places.shape, q.shape[3]))
    return Judges(pieces, counts)


def representatives(q: Tensor, size: int, number: int) -> Tensor:
    """Which of every ``size`` queries are farthest from their mean, of equals the earlier ones.

    Distances are computed in float64 and compared in float32, so that no order of summation decides between
    queries that are equally far, such as the only two of a choice.

    q: [B, H, any, D] -> int64 [B, H, choices, number], ascending; where the last choice has fewer queries,
    those behind its end, which are nobody's, come last.
    """
    choices = -(-q.shape[2] // size)
    distances = q.new_full((*q.shape[:2], choices * size), -1.0, dtype=torch.float32)
    at_once = max(1, _TOKENS_AT_ONCE // size) * size
    rows, heads = (1, 1) if q.device.type == "cpu" else q.shape[:2]
    for row, head, first in product(
        range(0, q.shape[0], rows), range(0, q.shape[1], heads), range(0, q.shape[2], at_once)
    ):
        place = slice(row, row + rows), slice(head, head + heads)
        part = q[*place, first : first + at_once]
        whole = part.shape[2] // size * size
        for start, end, length in ((0, whole, size), (whole, part.shape[2], part.shape[2] - whole)):
            if start < end:
                pieces = part[:, :, start:end].double().unflatten(2, (-1, length))
                apart = (pieces - pieces.mean(3, keepdim=True)).square_().sum(4)
                distances[*place, first + start : first + end] = apart.flatten(2).float()
    # A distance's bits are in the order of the distances; beneath them an earlier place ranks higher. So all
    # ranks differ: topk promises nothing about equals.
    places = torch.arange(size - 1, -1, -1, device=q.device)
    ranks = distances.unflatten(2, (choices, size)).view(torch.int32).long() << 32 | places
    return ranks.topk(number, dim=3).indices.sort(dim=3).values
