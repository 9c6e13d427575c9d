"""The queries or keys of a group that stand out from what the group has in common."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

# Tokens measured at a time: bounds the memory of working in float64.
_TOKENS_AT_ONCE = 16_384


def representatives(x: Tensor, size: int, number: int) -> Tensor:
    """Which of every ``size`` consecutive vectors are farthest from their mean, of equals the earlier ones.

    Distances are computed in float64 and compared in float32, so that no order of summation decides between
    vectors that are equally far, such as the only two of a group.

    x: [B, H, any, D] -> int64 [B, H, groups, number], ascending; where the last group has fewer vectors,
    those behind its end, which are nobody's, come last.
    """
    groups = -(-x.shape[2] // size)
    distances = x.new_full((*x.shape[:2], groups * size), -1.0, dtype=torch.float32)
    at_once = max(1, _TOKENS_AT_ONCE // size) * size
    rows, heads = (1, 1) if x.device.type == "cpu" else x.shape[:2]
    for row, head, first in product(
        range(0, x.shape[0], rows), range(0, x.shape[1], heads), range(0, x.shape[2], at_once)
    ):
        place = slice(row, row + rows), slice(head, head + heads)
        part = x[*place, first : first + at_once]
        whole = part.shape[2] // size * size
        for start, end, length in ((0, whole, size), (whole, part.shape[2], part.shape[2] - whole)):
            if start < end:
                pieces = part[:, :, start:end].double().unflatten(2, (-1, length))
                apart = (pieces - pieces.mean(3, keepdim=True)).square_().sum(4)
                distances[*place, first + start : first + end] = apart.flatten(2).float()
    # A distance's bits are in the order of the distances; beneath them an earlier place ranks higher. So all
    # ranks differ: topk promises nothing about equals.
    places = torch.arange(size - 1, -1, -1, device=x.device)
    ranks = distances.unflatten(2, (groups, size)).view(torch.int32).long() << 32 | places
    return ranks.topk(number, dim=3).indices.sort(dim=3).values
