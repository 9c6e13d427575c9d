"""Which past memory blocks each chunk retrieves (paper, section 3.3).

Nothing here carries a gradient: the choice is discrete. In the order of the work: a document's blocks are
summarised (``summaries.py``), the queries that judge are found (``judges.py``), compared with the summaries
(``relevancy.py``), and the most relevant blocks are taken (``ranking.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.layout import Document, Layout
from se_model.span.options import SpanOptions
from se_model.span.selection.judges import judges_of
from se_model.span.selection.ranking import rank_blocks
from se_model.span.selection.relevancy import SCORES_AT_ONCE, judged_relevance, relevance
from se_model.span.selection.summaries import sum_queries, summarise


@torch.no_grad()
def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The ids of the blocks that each choice retrieves, ascending, then -1 where there is none.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], which the summary "attention" alone looks at ->
    int64 [B, G, choices, min(top_k, most_candidates)].
    """
    with torch.autocast(q.device.type, enabled=False):
        return _choose(q, k, v, layout, options)


def _choose(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    width = min(options.top_k, layout.most_candidates)
    chosen = torch.full((*k.shape[:2], layout.choices, width), -1, dtype=torch.int64, device=k.device)
    for document in layout.documents:
        choices = layout.choices_of(document)
        candidates = layout.candidates(choices - 1)
        if candidates == 0 or width == 0:
            continue
        tokens = slice(document.start, document.start + candidates * layout.block_size)
        summaries = summarise(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens], options)
        queries = q[:, :, document.start : document.end]
        choose = choose_by_sums if options.sums else choose_by_judges
        chosen[:, :, document.first_choice : document.first_choice + choices] = choose(
            queries, summaries, document, layout, options, k.shape[1], width
        )
    return chosen


def choose_by_sums(
    q: Tensor,
    summaries: Tensor,
    document: Document,
    layout: Layout,
    options: SpanOptions,
    groups: int,
    width: int,
) -> Tensor:
    """A document's choices where all queries of a choice are summed.

    The relevancy R_ij = sum_t <Q_i[t], c_j> is linear in the queries, so they are summed first:
    O(dLS + dL^2 / (MS)) instead of the paper's O(dL^2 / S). Its softmax is monotone and left out.

    q: [B, H, length, D]; summaries: as `summarise` returns them, of the document's candidates; groups: G
    -> int64 [B, G, choices, width].
    """
    sums = sum_queries(q, layout.refresh, options)
    if options.causal:
        sums = torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], dim=2)
    choices, candidates = sums.shape[2], summaries.shape[2]
    rows = max(1, SCORES_AT_ONCE // (q.shape[0] * groups * candidates))
    ranked = []
    for first in range(0, choices, rows):
        relevancy = relevance(sums[:, :, first : first + rows], summaries, groups)
        ranked.append(rank_blocks(relevancy, document, layout, width, first))
    return torch.cat(ranked, dim=2)


def choose_by_judges(
    q: Tensor,
    summaries: Tensor,
    document: Document,
    layout: Layout,
    options: SpanOptions,
    groups: int,
    width: int,
) -> Tensor:
    """A document's choices where each judging query is compared with every block. As `choose_by_sums`."""
    choices = layout.choices_of(document)
    chosen = torch.full((q.shape[0], groups, choices, width), -1, dtype=torch.int64, device=q.device)
    # Only choices with candidates have anything to judge.
    first = next(choice for choice in range(choices) if layout.candidates(choice))
    judged = range(first, choices)
    queries = q[:, :, (first - int(options.causal)) * layout.refresh :]
    chosen[:, :, first:] = judge(queries, summaries, judged, document, layout, options, groups, width)
    return chosen


def judge(
    q: Tensor,
    summaries: Tensor,
    choices: range,
    document: Document,
    layout: Layout,
    options: SpanOptions,
    groups: int,
    width: int,
) -> Tensor:
    """What the given choices of a document retrieve; each of them has a candidate.

    q: [B, H, any, D], ``refresh`` queries for each choice, its own or, under "causal" selection, those of the
    choice before; for the last choice there may be fewer, and what follows is not looked at. summaries: of
    the document's first blocks, all candidates of these choices among them. choices: counted from the
    document's first. Returns int64 [B, G, choices, width].
    """
    refresh, sample = layout.refresh, options.queries
    compared = q.shape[0] * q.shape[1] * sample.judges(refresh) * summaries.shape[2]
    rows = max(1, SCORES_AT_ONCE // compared)
    ranked = []
    for first in range(choices.start, choices.stop, rows):
        part = range(first, min(first + rows, choices.stop))
        start = (first - choices.start) * refresh
        judges = judges_of(q[:, :, start : start + len(part) * refresh], refresh, sample)
        candidates = [layout.candidates(choice) for choice in part]
        relevancy = judged_relevance(judges, summaries, candidates, options, groups)
        ranked.append(rank_blocks(relevancy, document, layout, width, first))
    return torch.cat(ranked, dim=2)
