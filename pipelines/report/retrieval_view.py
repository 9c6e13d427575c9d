"""Which needles the chosen memory blocks held, as a part of the page: by length, layer, head and depth."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluate.scores import RetrievalScore
from pipelines.report.blocks import (
    Block,
    Heading,
    HeatCell,
    HeatMap,
    HeatRow,
    HeatScale,
    Row,
    Section,
    Table,
    TableRow,
)
from pipelines.report.evaluations import Evaluation
from pipelines.report.text import count, percent, tokens


def retrieval_section(found: Sequence[Evaluation]) -> Section | None:
    """What every evaluation's choices of blocks found; None where no attention chooses blocks."""
    measured = [each for each in found if each.scores.retrieval]
    if not measured:
        return None
    blocks: list[Block] = []
    for each in measured:
        scores = sorted(each.scores.retrieval, key=lambda score: score.length)
        blocks.append(Heading(each.stage, each.label))
        longest = scores[-1]
        blocks.append(Row([_by_layer(scores), _by_head(longest)], across=2))
        if longest.asked_by_depth:
            blocks.append(Row([_by_depth(longest)]))
        blocks.append(Row([_table(scores)]))
    blocks.append(HeatScale("the needles asked for, found"))
    text = (
        "How often the memory blocks that a chunk chooses hold the needle that is asked for. Above the "
        "needles that are not asked for it is relevance, above chance at least salience."
    )
    return Section("retrieval", "Retrieval", text, blocks)


def _by_layer(scores: Sequence[RetrievalScore]) -> HeatMap:
    layers = max(len(score.asked_by_head) for score in scores)
    rows = [
        HeatRow(str(layer), [_cell(_mean(score.asked_by_head[layer])) for score in scores])
        for layer in range(layers)
    ]
    rows.append(HeatRow("all", [_cell(score.asked) for score in scores], mean=True))
    note = "Mean over the heads of each attention layer, by context length."
    return HeatMap("By layer", note, [tokens(score.length) for score in scores], rows, "layer")


def _by_depth(score: RetrievalScore) -> HeatMap:
    columns = [f"{depth.low * 100:.0f}%" for depth in score.asked_by_depth]
    rows = [
        HeatRow(str(layer), [_cell(depth.asked_by_layer[layer]) for depth in score.asked_by_depth])
        for layer in range(len(score.asked_by_head))
    ]
    rows.append(HeatRow("all", [_cell(depth.asked) for depth in score.asked_by_depth], mean=True))
    note = (
        f"At {count(score.length)} tokens, by where the needle stands: from 0%, the beginning of the prompt, "
        "to 100%, its end."
    )
    return HeatMap("By layer and depth", note, columns, rows, "layer")


def _by_head(score: RetrievalScore) -> HeatMap:
    heads = max(map(len, score.asked_by_head))
    rows = [
        HeatRow(str(layer), [_cell(share) for share in shares])
        for layer, shares in enumerate(score.asked_by_head)
    ]
    note = f"At {count(score.length)} tokens, by key/value head."
    return HeatMap("By layer and head", note, [str(head) for head in range(heads)], rows, "layer")


def _table(scores: Sequence[RetrievalScore]) -> Table:
    never = any(score.never_chosen is not None for score in scores)
    columns = ["context, tokens", "asked", "not asked", "chance", *(["never chosen"] if never else [])]
    rows = [
        TableRow(
            [
                count(score.length),
                *(percent(share, 1) for share in (score.asked, score.not_asked, score.chance)),
                *([percent(score.never_chosen, 1)] if never else []),
            ]
        )
        for score in scores
    ]
    note = "Never chosen: blocks that no choice holds, of those that could be chosen." if never else ""
    return Table(columns, rows, "By length", note, numeric=range(1, len(columns)))


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _cell(share: float | None) -> HeatCell:
    return HeatCell(share, percent(share), percent(share, 1))
