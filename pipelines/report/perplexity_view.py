"""Perplexity of the evaluations, as a part of the page: by length and by position."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines.evaluate.scores import PositionBin
from pipelines.report import charts
from pipelines.report.blocks import Block, Chart, Row, Section, Table, TableRow
from pipelines.report.evaluations import Evaluation
from pipelines.report.legend import legend
from pipelines.report.text import change, count
from pipelines.statistics import Interval

# More evaluations than this stand below each other in a table, not beside each other.
_MOST_COLUMNS = 3


def perplexity_section(found: Sequence[Evaluation]) -> Section | None:
    """Perplexity by length and by position; None where nothing measured it."""
    measured = [each for each in found if each.scores.perplexity]
    if not measured:
        return None
    series = [
        charts.Series(
            each.label,
            [score.length for score in each.scores.perplexity],
            [score.perplexity for score in each.scores.perplexity],
            [score.interval for score in each.scores.perplexity],
            each.colour,
        )
        for each in measured
    ]
    size = "half" if len(measured) <= _MOST_COLUMNS else "wide"
    picture = charts.by_length(series, label="Perplexity by context length", size=size)
    chart = Chart("Held-out text", picture, "Lower is better; bars are 95% intervals.", legend(measured))
    scored = measured[-1].scores.perplexity[0]
    text = (
        f"The same {count(scored.scored_tokens)} tokens, the last of {count(scored.windows)} documents, "
        "are scored at every length: only the context before them grows."
    )
    table = _table(measured)
    few = len(measured) <= _MOST_COLUMNS
    blocks: list[Block] = [Row([chart, table], across=2)] if few else [Row([chart]), Row([table])]
    return Section("perplexity", "Perplexity", text, [*blocks, *_by_position(found)])


def _by_position(found: Sequence[Evaluation]) -> list[Block]:
    measured = [each for each in found if each.scores.positions]
    if not measured:
        return []
    bins = {each.stage: max(each.scores.positions, key=lambda loss: loss.length).bins for each in measured}
    series = [
        charts.Series(
            each.label,
            [(one.first + one.last) / 2 for one in bins[each.stage]],
            [math.exp(one.loss) for one in bins[each.stage]],
            [_perplexity_interval(one) for one in bins[each.stage]],
            each.colour,
        )
        for each in measured
    ]
    picture = charts.by_position(series, label="Perplexity by position")
    note = "Of whole documents, by how far into them a token stands; bands are 95% intervals."
    chart = Chart("By position", picture, note, legend(measured))
    positions = list(dict.fromkeys((one.first, one.last) for each in measured for one in bins[each.stage]))
    by_place = {each.stage: {(one.first, one.last): one for one in bins[each.stage]} for each in measured}
    rows = [
        TableRow(
            [
                f"{count(first)}–{count(last)}",
                *(_perplexity_of(by_place[each.stage].get((first, last))) for each in measured),
            ]
        )
        for first, last in sorted(positions)
    ]
    columns = ["tokens", *(each.stage for each in measured)]
    table = Table(columns, rows, "By position, in numbers", numeric=range(1, len(columns)), folded=True)
    return [Row([chart]), Row([table])]


def _perplexity_interval(one: PositionBin) -> Interval:
    return Interval(math.exp(one.interval.low), math.exp(one.interval.high))


def _perplexity_of(one: PositionBin | None) -> str:
    return "–" if one is None else f"{math.exp(one.loss):.2f}"


def _table(measured: Sequence[Evaluation]) -> Table:
    """Few evaluations stand side by side, with the change where there are just two."""
    lengths = sorted({score.length for each in measured for score in each.scores.perplexity})
    if len(measured) > _MOST_COLUMNS:
        rows = [
            TableRow([each.label, *(_perplexity(each, length) for length in lengths)]) for each in measured
        ]
        return Table(
            ["evaluation", *map(count, lengths)], rows, "In numbers", numeric=range(1, len(lengths) + 1)
        )
    rows = []
    for length in lengths:
        cells = [count(length), *(_perplexity(each, length) for each in measured)]
        if len(measured) == 2:
            first, last = (each.scores.perplexity_at(length) for each in measured)
            cells.append(change(last.perplexity / first.perplexity - 1) if first and last else "–")
        rows.append(TableRow(cells))
    columns = [
        "context, tokens",
        *(each.stage for each in measured),
        *(["change"] if len(measured) == 2 else []),
    ]
    return Table(columns, rows, "In numbers", numeric=range(1, len(columns)))


def _perplexity(each: Evaluation, length: int) -> str:
    score = each.scores.perplexity_at(length)
    return "–" if score is None else f"{score.perplexity:.2f}"
