"""S2-Attn, the shifted sparse attention of LongLoRA (Chen et al., ICLR 2024, arXiv 2309.12307)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from se_model.baselines.full import attend_within
from se_model.span.documents import Documents, check_inputs, document_bounds
from se_model.span.protocol import Attention


def s2_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group_size: int | None = None,
    scale: float | None = None,
    cu_seqlens: Documents | None = None,
) -> Tensor:
    """Causal attention inside groups of tokens; for half of the heads the groups are shifted by half a group.

    q: [B, H, L, D], H at least 2; k: [B, G, L, D]; v: [B, G, L, Dv], G divides H; cu_seqlens: [N + 1] with
    B = 1. Returns [B, H, L, Dv]. ``group_size`` in tokens; by default a quarter of each document, rounded up.
    Groups restart at each document.

    LongLoRA shifts by rolling the sequence, so that one group joins the document's end to its beginning and
    lets the first tokens see the last ones. Here the half groups at both ends stay separate: no token sees
    the future.

    Raises:
        ValueError: on a single query head, a group size below 1, or inputs that do not fit together.
    """
    _check_group_size(group_size)
    check_inputs(q, k, v)
    heads = q.shape[1]
    if heads < 2:
        raise ValueError("S2 attention shifts half of the heads: it needs at least 2 query heads, got 1")
    bounds = document_bounds(cu_seqlens, q.shape[2], q.shape[0])
    straight = (heads + 1) // 2
    sharing = heads // k.shape[1]
    if straight % sharing:
        # Some key/value head would serve both halves: give every query head its own.
        k, v = (x.repeat_interleave(sharing, dim=1) for x in (k, v))
        sharing = 1
    head_counts = [straight, heads - straight]
    kv_counts = [count // sharing for count in head_counts]
    q_halves = q.split(head_counts, dim=1)
    k_halves, v_halves = (x.split(kv_counts, dim=1) for x in (k, v))
    outputs = [
        attend_within(queries, keys, values, group_bounds(bounds, group_size, shifted), scale)
        for queries, keys, values, shifted in zip(q_halves, k_halves, v_halves, (False, True), strict=True)
    ]
    return torch.cat(outputs, dim=1)


def group_bounds(bounds: tuple[int, ...], group_size: int | None, shifted: bool) -> tuple[int, ...]:
    """Where groups begin, and the end of the last, in documents between ``bounds``.

    Shifted groups begin half a group into each document, after a first group of that half.
    """
    starts: list[int] = []
    for start, end in pairwise(bounds):
        size = group_size or -(-(end - start) // 4)
        starts += sorted({start, *range(start + (size // 2 if shifted else 0), end, size)})
    return (*starts, bounds[-1])


def _check_group_size(group_size: int | None) -> None:
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1 (None: a quarter of the length), not {group_size}")


@dataclass(frozen=True)
class S2Config:
    """Shifted sparse attention; ``group_size`` in tokens, by default a quarter of each document.

    Raises:
        ValueError: on a group size below 1.
    """

    kind: ClassVar[str] = "s2"
    draws: ClassVar[bool] = False

    group_size: int | None = None

    def __post_init__(self) -> None:
        _check_group_size(self.group_size)

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call: the same for all."""
        return partial(s2_attention, group_size=self.group_size)
