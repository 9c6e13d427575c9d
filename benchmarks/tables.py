"""A result for a reader: the table on a terminal, and what was left out."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.table import Table

from benchmarks.records import MODES, SELECTION, floor_share

HEADINGS = (
    "tokens", "attention", "forward\nms", "\nratio", "of\nfloor", "fwd + bwd\nms", "\nratio", "of\nfloor",
    "peak\nMiB", "\nratio", "FLOP\nratio", "choice\nms", "of all",
)  # fmt: skip


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of text for each record, in the order of ``HEADINGS``; a dash where nothing was measured."""
    return [_row(result["results"], record) for record in result["results"]]


def _row(records: list[dict[str, Any]], record: dict[str, Any]) -> tuple[str, ...]:
    cells = [f"{record['length']:,}", record["attention"]]
    ratios = record["ratios"]
    for mode in MODES:
        cells += [
            f"{record[mode]['seconds'] * 1e3:,.1f}" if mode in record else "-",
            _two_digits(ratios.get(f"{mode}_seconds")),
            _percent(floor_share(records, record, mode)),
        ]
    training = "forward_backward" if "forward_backward" in record else "forward"
    choice = record.get(SELECTION, {})
    cells += [
        f"{record[training]['peak_bytes'] / 2**20:,.1f}",
        _two_digits(ratios.get(f"{training}_peak_bytes")),
        _two_digits(ratios.get("flops")),
        f"{choice['seconds'] * 1e3:,.1f}" if choice else "-",
        _percent(choice.get(f"share_of_{training}")),
    ]
    return tuple(cells)


def table(result: dict[str, Any]) -> Table:
    """What a terminal shows: every ratio stands right of what it is the ratio of."""
    where = result["machine"]["gpu"] or result["machine"]["processor"]
    shown = Table(
        title=f"Attention on {where}, {result['setting']['dtype']}",
        caption=f"ratio: of {result['reference']}'s at the same length; smaller is better. "
        f"{result['reference']} runs on torch's {result['reference_kernel']} kernel",
    )
    for number, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if number == 1 else "right", no_wrap=True)
    for _, section in groupby(rows(result), key=lambda row: row[0]):
        for row in section:
            shown.add_row(*row)
        shown.add_section()
    return shown


def left_out_lines(result: dict[str, Any]) -> list[str]:
    """What was not measured and why, attentions of which that is true at the same lengths together."""
    lengths: dict[tuple[str, str], list[str]] = {}
    for one in result["left_out"]:
        lengths.setdefault((one["attention"], one["reason"]), []).append(f"{one['length']:,}")
    names: dict[tuple[str, str], list[str]] = {}
    for (name, reason), where in lengths.items():
        names.setdefault((", ".join(where), reason), []).append(name)
    return [f"{'; '.join(some)} at {where} tokens: {reason}" for (where, reason), some in names.items()]


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
