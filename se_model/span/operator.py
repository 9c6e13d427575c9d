"""The public functions, span-expanded attention and its choice of blocks: check, choose, attend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.backends import Request, resolve
from se_model.span.documents import Documents, check_inputs, document_bounds
from se_model.span.layout import Layout, cut
from se_model.span.options import SpanOptions
from se_model.span.rules import Queries, as_sample
from se_model.span.statistics import note_selection


def se_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    block_size: int = 32,
    top_k: int = 8,
    scale: float | None = None,
    cu_seqlens: Documents | None = None,
    summary: str = "attention",
    relevancy: str = "sum",
    queries: Queries = "all",
    selection: str = "chunk",
    refresh: int | None = None,
    backend: str = "auto",
    blocks: Tensor | None = None,
) -> Tensor:
    """Causal attention inside chunks, expanded by retrieved memory blocks (paper, sections 3.2 and 3.3).

    Every query sees its own chunk causally, and all tokens of the ``top_k`` past blocks chosen for it.
    Chunks and blocks restart at each document; a document's last ones may be shorter. Apply rotary embeddings
    to q and k first. No gradient flows through the choice of blocks.

    Args:
        q: [B, H, L, D], any L.
        k: [B, G, L, D]; G divides H. Query heads of a group share one choice of blocks.
        v: [B, G, L, Dv]; Dv may differ from D where blocks are not chosen by the summary "attention".
        chunk_size: M, tokens per chunk; a multiple of ``block_size``.
        block_size: S, tokens per memory block.
        top_k: blocks to retrieve; where there are fewer, all of them. 0 is attention inside each chunk.
        scale: factor of the logits; D ** -0.5 by default.
        cu_seqlens: int32 or int64 [N + 1], bounds of the documents packed in the row, with B = 1.
        summary: what represents a block: "attention" (the paper's), "mean_key", "key_bounds" or
            "representative_keys".
        relevancy: what a block's comparisons with several queries come to: "sum" (the paper's), "mass",
            "max" or "peak". All three words are explained in ``SpanConfig``.
        queries: which queries are compared: "all" (the paper's), {"representative": r} or {"stride": n}.
        selection: "chunk" (the paper's) or "causal", which lets no token see a choice made by a later one.
        refresh: queries that share a choice under "causal" selection, by default ``block_size``; divides
            ``chunk_size``. Each choice is made by the ``refresh`` queries before.
        backend: a name in ``se_model.span.backends.BACKENDS``, or "auto" for the first that serves the call.
        blocks: a choice to use instead of making one: int64 [B, G, T, K] as ``select_blocks`` returns it.

    Returns:
        [B, H, L, Dv] in q's dtype.

    Raises:
        ValueError: on shapes, options, ``cu_seqlens`` or ``blocks`` that do not fit together, and on a
            backend that cannot serve the call.
    """
    options = SpanOptions(
        chunk_size, block_size, top_k, summary, selection, refresh, scale, relevancy, as_sample(queries)
    )
    layout = _cut(q, k, v, options, cu_seqlens)
    chosen_backend = resolve(backend, _request(q, k, v, layout, options))
    if blocks is None:
        options.check_widths(q.shape[3], v.shape[3])
        counts = layout.counts(top_k)
        blocks = chosen_backend.choose_blocks(q, k, v, layout, options)
    else:
        counts = count_blocks(blocks, k, layout)
        top_k = blocks.shape[-1]
    note_selection(blocks, layout, top_k)
    return chosen_backend.attend(q, k, v, blocks, counts, layout, options)


def select_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    block_size: int = 32,
    top_k: int = 8,
    scale: float | None = None,
    cu_seqlens: Documents | None = None,
    summary: str = "attention",
    relevancy: str = "sum",
    queries: Queries = "all",
    selection: str = "chunk",
    refresh: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Which memory blocks ``se_attention`` retrieves; the arguments are the same.

    Candidates are the full-sized blocks of the same document that end before the chunk begins. Of equally
    relevant blocks the earlier one is taken.

    Returns:
        int64 [B, G, T, top_k], where T counts chunks (for "causal" selection, groups of ``refresh`` queries)
        document after document. Ids count blocks the same way, a document's partial last block included;
        they ascend, and are -1 from where there is none.

    Raises:
        ValueError: as ``se_attention``.
    """
    options = SpanOptions(
        chunk_size, block_size, top_k, summary, selection, refresh, scale, relevancy, as_sample(queries)
    )
    layout = _cut(q, k, v, options, cu_seqlens)
    options.check_widths(q.shape[3], v.shape[3])
    blocks = resolve(backend, _request(q, k, v, layout, options)).choose_blocks(q, k, v, layout, options)
    note_selection(blocks, layout, top_k)
    return F.pad(blocks, (0, top_k - blocks.shape[-1]), value=-1)


def count_blocks(blocks: Tensor, k: Tensor, layout: Layout) -> tuple[int, ...]:
    """How many blocks each choice names, after checking that it may name them.

    blocks: int64 [B, G, choices, K], from a caller; k: [B, G, L, D].

    Raises:
        ValueError: if a choice names a block that is not a candidate of its chunk, if its ids do not ascend
            with -1 only after them, or if the heads of one choice name different numbers of blocks.
    """
    expected = [*k.shape[:2], layout.choices]
    if blocks.dtype != torch.int64 or blocks.dim() != 4 or list(blocks.shape[:3]) != expected:
        raise ValueError(
            f"blocks must be int64 [B, G, T, K] with B, G, T = {expected}; "
            f"got {blocks.dtype} {list(blocks.shape)}"
        )
    if blocks.device != k.device:
        raise ValueError(f"blocks must be on the device of k, {k.device}; they are on {blocks.device}")
    given = blocks.cpu()
    filled = given >= 0
    counts = filled.sum(-1)
    starts = torch.tensor([document.first_block for document in layout.documents]).repeat_interleave(
        torch.tensor([layout.choices_of(document) for document in layout.documents])
    )
    limits = torch.tensor(layout.counts(layout.blocks))
    ascending = (given[..., 1:] > given[..., :-1]) | ~filled[..., 1:]
    padded_last = filled == (torch.arange(given.shape[-1]) < counts[..., None])
    candidate = (given >= starts[:, None]) & (given < (starts + limits)[:, None])
    if not (ascending.all() and padded_last.all() and (candidate | ~filled).all()):
        raise ValueError(
            "blocks must name, for each choice, whole blocks of its document that lie before its chunk, "
            "ascending, then -1"
        )
    if not (counts == counts[:1, :1]).all():
        raise ValueError("blocks must name equally many blocks for every batch element and head of a choice")
    return tuple(counts[0, 0].tolist())


def _cut(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions, cu_seqlens: Documents | None) -> Layout:
    check_inputs(q, k, v)
    bounds = document_bounds(cu_seqlens, q.shape[2], q.shape[0])
    return cut(options.chunk_size, options.block_size, options.queries_per_choice, bounds)


def _request(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Request:
    return Request(
        device=q.device.type,
        dtype=q.dtype,
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        block_size=options.block_size,
        grouped=q.shape[1] != k.shape[1],
        packed=len(layout.bounds) > 2,
        gradients=torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)),
        selection=options.selection,
    )
