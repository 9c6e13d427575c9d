"""Equally long stretches of tokens, evenly spaced in a row: viewed in place, or batched for a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stretches:
    """In each of ``rows``: ``pieces`` groups of ``count`` stretches of ``length`` tokens.

    Attributes:
        rows: which elements of the batch.
        start: the first stretch's first token.
        pieces: how many groups.
        apart: tokens from the start of one group to the next one's.
        count: stretches in a group.
        step: tokens from the start of one stretch to the next one's in its group.
        length: tokens in a stretch.
    """

    rows: slice
    start: int
    pieces: int
    apart: int
    count: int
    step: int
    length: int

    def view(self, x: Tensor) -> Tensor:
        """The stretches in x [B, H, L, ...], in place: [rows, H, pieces, count, length, ...]."""
        rows = x[self.rows]
        # Slices would not do: the last stretch's step may reach beyond the end of the row.
        batch, head, token, *rest = rows.stride()
        return rows.as_strided(
            (*rows.shape[:2], self.pieces, self.count, self.length, *rows.shape[3:]),
            (batch, head, self.apart * token, self.step * token, token, *rest),
            rows.storage_offset() + self.start * token,
        )

    def batch(self, x: Tensor) -> Tensor:
        """The stretches in x [B, H, L, ...] as a batch [rows * pieces * count, H, length, ...].

        Copies only if the stretches are not evenly spaced over groups and rows.
        """
        return self.view(x).movedim(1, 3).flatten(0, 2)

    def unbatch(self, x: Tensor) -> Tensor:
        """A batch of stretches in the shape of ``view``."""
        return x.unflatten(0, (-1, self.pieces, self.count)).movedim(3, 1)
