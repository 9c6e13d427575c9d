"""A row cut into chunks of equally many tokens: padding, documents and decays, for every kind of recurrence.

T chunks of Q tokens each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.documents import DocumentBounds


class ChunkDocuments(NamedTuple):
    """The document of each token, [T, Q], and of the state at each chunk boundary, [T + 1]."""

    of_token: Tensor
    of_state: Tensor

    @classmethod
    def of(cls, documents: DocumentBounds, size: int, device: torch.device) -> ChunkDocuments:
        """Cuts a row into chunks of ``size`` tokens; what pads the last belongs to the last document."""
        last = len(documents.bounds) - 2
        of_token = F.pad(documents.index(device), (0, -documents.length % size), value=last).view(-1, size)
        return cls(of_token, F.pad(of_token[:, -1], (1, 0), value=0))

    def chunks(self, start: int, end: int) -> ChunkDocuments:
        """Of some of the chunks."""
        return ChunkDocuments(self.of_token[start:end], self.of_state[start : end + 1])


def in_chunks(tensor: Tensor, size: int) -> Tensor:
    """[B, L, ...] -> [B, T, Q, ...], zeros behind the last token: nothing decays, nothing is added."""
    if padding := -tensor.shape[1] % size:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, padding))
    return tensor.unflatten(1, (-1, size))


def decay(log: Tensor, visible: Tensor | None = None) -> Tensor:
    """exp(log) where visible, else zero; a decay below the square root of the smallest number is zero, too.

    Products with such decays are denormal numbers, with which a CPU computes ten times as slowly.
    """
    if visible is not None:
        log = log.masked_fill(~visible, -torch.inf)
    smallest = torch.finfo(log.dtype).smallest_normal
    return F.threshold(log, math.log(smallest) / 2, -torch.inf).exp()
