"""Sliding-window attention: each token sees a fixed number of tokens up to itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from se_model.span.documents import Documents, check_inputs, document_bounds
from se_model.span.protocol import Attention
from se_model.span.widths import dense_attention


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    scale: float | None = None,
    cu_seqlens: Documents | None = None,
) -> Tensor:
    """Token t attends to tokens t - window + 1 to t of its own document.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], G divides H; cu_seqlens: [N + 1] with B = 1. Returns
    [B, H, L, Dv].
    Works through tiles of queries; memory grows with L, not with L times the window.

    Raises:
        ValueError: on a window below 1, and on inputs that do not fit together.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    check_inputs(q, k, v)
    bounds = document_bounds(cu_seqlens, q.shape[2], q.shape[0])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lengths = [end - start for start, end in pairwise(bounds)]
    documents = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    outputs = [_attend_document(queries, keys, values, window, scale) for queries, keys, values in documents]
    return torch.cat(outputs, dim=2)


def _attend_document(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """One document: its first ``window`` tokens see all before them; the rest goes tile by tile."""
    attend = partial(dense_attention, scale=scale)
    length = q.shape[2]
    outputs = [attend(q[:, :, :window], k[:, :, :window], v[:, :, :window], is_causal=True)]
    if length <= window:
        return outputs[0]
    # A tile of queries reads the window - 1 keys before it and its own. Smaller tiles waste less computation
    # on masked pairs, but copy more keys.
    tile = min(window, max(128, window // 4))
    tiles, rest = divmod(length - window, tile)
    # Row r of a tile sees keys r to r + window - 1 of what the tile reads.
    offset = torch.arange(window - 1 + tile, device=q.device) - torch.arange(tile, device=q.device)[:, None]
    visible = (offset >= 0) & (offset < window)
    if tiles:
        queries = q[:, :, window : window + tiles * tile].unflatten(2, (tiles, tile)).transpose(1, 2)
        read = slice(1, window + tiles * tile)
        keys, values = (
            x[:, :, read].unfold(2, window - 1 + tile, tile).transpose(1, 2).transpose(-1, -2) for x in (k, v)
        )
        out = attend(queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), attn_mask=visible)
        outputs.append(out.unflatten(0, (-1, tiles)).transpose(1, 2).flatten(2, 3))
    if rest:
        read = slice(length - rest - window + 1, length)
        mask = visible[:rest, : window - 1 + rest]
        outputs.append(attend(q[:, :, length - rest :], k[:, :, read], v[:, :, read], attn_mask=mask))
    return torch.cat(outputs, dim=2)


@dataclass(frozen=True)
class SlidingWindowConfig:
    """Sliding-window attention over ``window`` tokens, the token itself among them.

    Raises:
        ValueError: on a window below 1.
    """

    kind: ClassVar[str] = "window"
    draws: ClassVar[bool] = False

    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call: the same for all."""
        return partial(sliding_window_attention, window=self.window)
