"""A batch cut into runs of tokens without padding, as integers on the host.

The mask function reads them off the mask once, where it is made, before the first layer; layers look them up
by the mask that they are handed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from se_model.span.documents import DocumentBounds


@dataclass(frozen=True)
class Run:
    """Tokens that attend together: those from `start` to `end` of each of `rows`.

    documents: those among them that do not; None for one.
    """

    rows: slice
    start: int
    end: int
    documents: DocumentBounds | None = None


# For each mask that is alive, the stretches of every row. Only masks that nobody else holds are here, since a
# caller could write into its own.
_known = WeakIdKeyDictionary()

Stretch = tuple[int, int]


def remember_runs(mask: Tensor) -> Tensor:
    """Reads the runs off a mask that was made just now, so that no layer has to. Returns the mask."""
    _known[mask] = _read(mask)
    return mask


def runs_of(mask: Tensor) -> list[Run]:
    """The runs of a batch, row by row; rows of nothing but padding have none.

    mask: bool [B, L], True for a real token; or int64 [B, L], the document that each token belongs to. One
    that `remember_runs` was not given (a copy that re-entrant checkpointing made of it) is read here.

    Raises:
        ValueError: for padding between real tokens.
    """
    rows: list[list[Stretch]] = _known[mask] if mask in _known else _read(mask)
    if mask.dtype != torch.bool:
        return [
            Run(slice(row, row + 1), 0, mask.shape[1], _documents(stretches))
            for row, stretches in enumerate(rows)
        ]
    for row, stretches in enumerate(rows):
        if len(stretches) > 1:
            raise ValueError(
                f"row {row} of the attention mask has padding between tokens; it may only stand at either end"
            )
    return [Run(slice(row, row + 1), *stretches[0]) for row, stretches in enumerate(rows) if stretches]


def _read(mask: Tensor) -> list[list[Stretch]]:
    """For each row where its documents, or its stretches of real tokens, begin and end."""
    length = mask.shape[1]
    changes = F.pad(mask[:, 1:] != mask[:, :-1], (1, 0), value=True)
    begins: list[list[int]] = [[] for _ in mask]
    for row, place in changes.nonzero().tolist():
        begins[row].append(place)
    rows = [list(pairwise([*places, length])) for places in begins]
    if mask.dtype != torch.bool:
        return rows
    # Real tokens and padding take turns.
    return [
        stretches[0 if real else 1 :: 2] for stretches, real in zip(rows, mask[:, 0].tolist(), strict=True)
    ]


def _documents(stretches: list[Stretch]) -> DocumentBounds:
    return DocumentBounds((0, *(end for _, end in stretches)))
