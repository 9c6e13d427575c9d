"""What the evaluations found, as parts of the page: recall and perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluate.scores import Mean
from pipelines.report import charts, svg
from pipelines.report.blocks import (
    Block,
    Chart,
    HeatCell,
    HeatMap,
    HeatRow,
    HeatScale,
    LegendEntry,
    Row,
    Section,
    Table,
    TableRow,
)
from pipelines.report.evaluations import Evaluation
from pipelines.report.text import between, change, count, percent, words

# Above this many maps the eye compares columns of the table better than colours.
_MOST_HEAT_MAPS = 8
# More evaluations than this stand below each other in a table, not beside each other.
_MOST_COLUMNS = 3


def recall_section(found: Sequence[Evaluation]) -> Section | None:
    """Recall by length and by task; None where nothing measured it."""
    measured = [each for each in found if each.scores.of("recall")]
    if not measured:
        return None
    series = [
        charts.Series(
            each.label,
            each.scores.lengths("recall"),
            [mean.value for mean in _means(each)],
            [mean.interval for mean in _means(each)],
            each.colour,
        )
        for each in measured
    ]
    svg = charts.by_length(series, label="Mean recall by context length", fraction=True, size="wide")
    samples = measured[-1].scores.of("recall")[0].samples
    chart = Chart(
        "Mean of all tasks",
        svg,
        f"{samples} prompts per task and length; bars are 95% intervals.",
        _legend(measured),
    )
    maps = [_heat_map(each) for each in measured[:_MOST_HEAT_MAPS]]
    blocks: list[Block] = [Row([chart]), Row(maps, across=2), HeatScale()]
    if len(measured) > 2:
        blocks.append(Row([_recall_table(measured)]))
    text = (
        "The share of expected answers that the model gives, when each stands once, somewhere in a long "
        "text, and is asked for at its end."
    )
    return Section("recall", "Recall by length", text, blocks)


def perplexity_section(found: Sequence[Evaluation]) -> Section | None:
    """Perplexity by length; None where nothing measured it."""
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
    svg = charts.by_length(series, label="Perplexity by context length", size=size)
    chart = Chart("Held-out text", svg, "Lower is better; bars are 95% intervals.", _legend(measured))
    scored = measured[-1].scores.perplexity[0]
    text = (
        f"The same {count(scored.scored_tokens)} tokens, the last of {count(scored.windows)} documents, "
        "are scored at every length: only the context before them grows."
    )
    table = _perplexity_table(measured)
    few = len(measured) <= _MOST_COLUMNS
    rows = [Row([chart, table], across=2)] if few else [Row([chart]), Row([table])]
    return Section("perplexity", "Perplexity by length", text, rows)


def _heat_map(each: Evaluation) -> HeatMap:
    scores = each.scores
    lengths = scores.lengths("recall")
    rows = []
    for task in dict.fromkeys(score.task for score in scores.of("recall")):
        cells = []
        for length in lengths:
            score = scores.score_at("recall", task, length)
            if score is None:
                cells.append(HeatCell(None))
                continue
            title = f"{percent(score.value, 1)} in {score.samples} prompts; 95%: {between(score.interval, 1)}"
            cells.append(HeatCell(score.value, percent(score.value), title))
        rows.append(HeatRow(words(task), cells))
    means = [HeatCell(mean.value, percent(mean.value), "mean of the tasks") for mean in _means(each)]
    rows.append(HeatRow("mean", means, mean=True))
    note = f"{scores.model}, {words(str(scores.attention['kind']))} attention"
    return HeatMap(each.stage, note, [count(length) for length in lengths], rows)


def _recall_table(measured: Sequence[Evaluation]) -> Table:
    lengths = sorted({length for each in measured for length in each.scores.lengths("recall")})
    rows = [TableRow([each.label, *(_recall(each, length) for length in lengths)]) for each in measured]
    return Table(
        ["mean of all tasks", *map(count, lengths)], rows, "Side by side", numeric=range(1, len(lengths) + 1)
    )


def _means(each: Evaluation) -> list[Mean]:
    """Mean recall at each of the evaluation's lengths."""
    found = (each.scores.mean_at("recall", length) for length in each.scores.lengths("recall"))
    return [mean for mean in found if mean]


def _recall(each: Evaluation, length: int) -> str:
    mean = each.scores.mean_at("recall", length)
    return percent(mean.value if mean else None, 1)


def _perplexity_table(measured: Sequence[Evaluation]) -> Table:
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


def _legend(found: Sequence[Evaluation]) -> list[LegendEntry]:
    return [LegendEntry(each.label, each.colour % svg.SERIES_COLOURS) for each in found]
