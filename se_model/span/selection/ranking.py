"""The most relevant candidates of every choice; of equally relevant blocks the earlier one."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.layout import Document, Layout


def rank_blocks(relevancy: Tensor, document: Document, layout: Layout, width: int, first: int) -> Tensor:
    """The ids of the ``width`` most relevant candidates of each choice, ascending, -1 where there is none.

    relevancy: [B, G, choices, U] of the document's choices from ``first`` on and its first U blocks
    -> int64 [B, G, choices, width]. Of equally relevant blocks the earlier one wins.
    """
    choices, blocks = relevancy.shape[2:]
    device = relevancy.device
    candidates = torch.tensor([[layout.candidates(first + i)] for i in range(choices)], device=device)
    closed = torch.arange(blocks, device=device) >= candidates
    order = relevancy.masked_fill(closed, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ids = order[..., :width] + document.first_block
    empty = torch.arange(ids.shape[-1], device=device) >= candidates
    nowhere = layout.blocks
    ids = ids.masked_fill(empty, nowhere).sort(dim=-1).values
    ids = ids.masked_fill(ids == nowhere, -1)
    return torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1)
