"""The memory blocks that runs of a row retrieve: gathered into batches, and their gradients added back."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.layout import Document, Run


def unbatch_pieces(x: Tensor, run: Run) -> Tensor:
    """A batch of a run's pieces [B * pieces, H, length, ...] as [B, H, pieces, length, ...]."""
    return x.unflatten(0, (-1, run.pieces)).transpose(1, 2)


def view_blocks(x: Tensor, document: Document, block_size: int) -> Tensor:
    """The whole blocks of a document in a row x [B, G, L, D], as a view [B, G, U, S, D]."""
    whole = document.length // block_size
    tokens = slice(document.start, document.start + whole * block_size)
    return x[:, :, tokens].unflatten(2, (whole, block_size))


def retrieve(x: Tensor, blocks: Tensor, run: Run, block_size: int) -> Tensor:
    """The keys or values that the run's pieces retrieve from a row x [B, G, L, D].

    blocks: ids over the row, [B, G, choices, K]. Returns [B * pieces, G, retrieved * S, D].
    """
    found = gather_blocks(view_blocks(x, run.document, block_size), _document_blocks(blocks, run))
    return found.transpose(1, 2).flatten(0, 1)


def gather_blocks(x: Tensor, where: Tensor) -> Tensor:
    """x: blocks [B, G, U, S, D]; where: which of them, [B, G, ..., K] -> [B, G, ..., K * S, D]."""
    batch, heads = x.shape[:2]
    rows = where.flatten(2)
    row = torch.arange(batch, device=x.device)[:, None, None]
    head = torch.arange(heads, device=x.device)[:, None]
    found = x[row, head, rows].unflatten(2, where.shape[2:])
    return found.flatten(-3, -2)


def add_retrieved_gradient(
    total: Tensor, gradient: Tensor, blocks: Tensor, run: Run, block_size: int
) -> None:
    """Adds ``gradient``, that of what ``retrieve`` returned, to the row's: total [B, G, L, D].

    Head by head through index_add_, which adds in a fixed order on the CPU.
    """
    into = view_blocks(total, run.document, block_size)
    gradient = unbatch_pieces(gradient, run).unflatten(3, (run.retrieved, block_size)).flatten(2, 3)
    where = _document_blocks(blocks, run).flatten(2)
    for batch in range(total.shape[0]):
        for head in range(total.shape[1]):
            into[batch, head].index_add_(0, where[batch, head], gradient[batch, head].to(total.dtype))


def _document_blocks(blocks: Tensor, run: Run) -> Tensor:
    """Which of their document's blocks the run's choices retrieve: [B, G, pieces, retrieved].

    blocks: ids over the row, [B, G, choices, K].
    """
    return blocks[:, :, run.choices, : run.retrieved] - run.document.first_block
