"""Tables of outcomes: as text for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.system import storage

FORMAT = "espan-study/1"
RESULTS_FILE, TABLE_FILE = "results.json", "table.md"


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Returns a Markdown table with its columns padded, so that it reads well as plain text too."""
    widths = [max(len(column), *(len(row.get(column, "")) for row in rows)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    head = [line(columns), line(["-" * width for width in widths])]
    return "\n".join([*head, *(line([row.get(column, "") for column in columns]) for row in rows)]) + "\n"


def write_study(
    output: str, table: str, rows: Sequence[Mapping[str, Any]], *, finished: int, trials: int, **more: Any
) -> None:
    """Writes the table and, last, the results behind it, which say how many of all trials have finished."""
    storage.write_text_atomic(storage.join(output, TABLE_FILE), table)
    storage.write_json_atomic(
        storage.join(output, RESULTS_FILE),
        {
            "format": FORMAT,
            "finished": finished,
            "trials": trials,
            **more,
            "rows": [dict(row) for row in rows],
        },
    )
