"""`espan compare`: evaluations side by side, paired prompt by prompt."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.errors import EspanError

if TYPE_CHECKING:
    from pipelines.evaluate.scores import Comparison, Evaluated

FORMAT = "espan-comparison/1"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs' folders or URLs, or evaluate stages' folders; the first evaluation is the baseline.",
        ),
    ],
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables to this Markdown file.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers to this JSON file.")
    ] = None,
) -> None:
    """Compare evaluations of the same prompts, and say which differences are real."""
    from pipelines.evaluate.scores import compare as compared
    from pipelines.report.differences_text import CAPTION

    baseline, *others = evaluations(runs)
    comparisons = compared(baseline, others)
    if not any(comparison.rows for comparison in comparisons):
        raise EspanError(_nothing_in_common(comparisons))
    for comparison in comparisons:
        _print(comparison)
    print(CAPTION)
    if markdown is not None:
        markdown.write_text("\n\n".join([*map(as_markdown, comparisons), CAPTION]) + "\n", encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(baseline, others, comparisons), indent=2) + "\n")


def evaluations(runs: Sequence[str]) -> list[Evaluated]:
    """Reads the evaluations of all runs, in order.

    Raises:
        EspanError: a run has none, there are fewer than two, or one does not say which prompts it scored.
    """
    from pipelines.evaluate.scores import Evaluated
    from pipelines.system import storage

    folders = [folder.rstrip("/") for run in runs for folder in _folders(storage.absolute(run))]
    if len(folders) < 2:
        raise EspanError(f"{folders[0]} is the only evaluation there; name another run to compare it with")
    return [Evaluated.read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def as_markdown(comparison: Comparison) -> str:
    """Returns the table of a comparison below its heading."""
    from pipelines.report.differences_text import NUMERIC, cells_of, columns_of, left_out

    columns = columns_of(comparison)
    rule = ["---:" if index in NUMERIC else "---" for index in range(len(columns))]
    lines = [columns, rule, *map(cells_of, comparison.rows)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    parts = [f"## {comparison.label} against {comparison.baseline}", *([table] if comparison.rows else [])]
    return "\n\n".join([*parts, *left_out(comparison)])


def as_json(
    baseline: Evaluated, others: Sequence[Evaluated], comparisons: Sequence[Comparison]
) -> dict[str, object]:
    """Returns everything that was found."""
    return {
        "format": FORMAT,
        "evaluations": [
            {"label": each.label, "model": each.scores.model, "attention": each.scores.attention}
            for each in (baseline, *others)
        ],
        "comparisons": [
            {
                **asdict(comparison),
                "rows": [{**asdict(row), "verdict": row.verdict} for row in comparison.rows],
            }
            for comparison in comparisons
        ],
    }


def _folders(run: str) -> list[str]:
    """Returns the folders of a run's evaluations, in the recipe's order."""
    from pipelines.evaluate.scores import SCORES_FILE
    from pipelines.records import FINISHED
    from pipelines.report.records import read_run
    from pipelines.system import storage

    if storage.exists(storage.join(run, SCORES_FILE)):
        return [run]
    if storage.glob(storage.join(run, "*", FINISHED)):
        found = [stage.path for stage in read_run(run).finished("evaluate")]
    else:
        scores = storage.glob(storage.join(run, "*", SCORES_FILE))
        found = [place.removesuffix(f"/{SCORES_FILE}") for place in scores]
    if not found:
        raise EspanError(
            f"{run}: no scores lie here; name a run with a finished evaluate stage, or the folder of one"
        )
    return found


def _labels(folders: Sequence[str]) -> list[str]:
    """Returns the last parts of each folder, as many as tell it from the others."""
    for parts in range(1, max(folder.count("/") for folder in folders) + 1):
        labels = ["/".join(folder.split("/")[-parts:]) for folder in folders]
        if max(Counter(labels).values()) == 1:
            return labels
    raise EspanError("a run is compared with itself; name each run once")


def _nothing_in_common(comparisons: Sequence[Comparison]) -> str:
    first = comparisons[0]
    why = (
        f"{first.unequal:,} prompts at the same place differ (by their seed, tokenizer or data)"
        if first.unequal
        else "they have no task and length in common"
    )
    return f"{first.baseline} and {first.label} share no prompt: {why}; evaluate both on the same prompts"


def _print(comparison: Comparison) -> None:
    from pipelines.report.differences_text import NUMERIC, cells_of, columns_of, left_out

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns_of(comparison)):
        table.add_column(Text(column), justify="right" if index in NUMERIC else "left")
    for row in comparison.rows:
        *cells, verdict = cells_of(row)
        colour = {"better": "green", "worse": "red"}.get(verdict, "")
        table.add_row(
            *map(Text, cells), Text(verdict, style=colour), style="bold" if row.task is None else None
        )
    with console.capture() as capture:
        console.print(table)
    print(f"{comparison.label} against {comparison.baseline}")
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    for sentence in left_out(comparison):
        print(sentence)
    print()
