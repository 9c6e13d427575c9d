"""What went in and what came out, as parts of the page: corpus, exports, and what other stages reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from pipelines.prepare.shards import Manifest, read_manifest, split_folder
from pipelines.report.blocks import Block, Heading, Row, Section, Table, TableRow
from pipelines.report.records import RunRecord, StageRecord
from pipelines.report.text import compact, count, percent, scientific, words
from pipelines.system import storage

TABLE_FILE = "table.md"

_SHOWN_ELSEWHERE = frozenset({"prepare", "train", "evaluate", "export", "report"})


def data_section(run: RunRecord) -> Section | None:
    """What every prepare stage read and packed."""
    blocks: list[Block] = []
    for stage in run.finished("prepare"):
        packed = [("training", read_manifest(stage.path))]
        if stage.keys["holdout"]:
            packed.append(("held out", read_manifest(split_folder(stage.path, "holdout"))))
        manifest = packed[0][1]
        rows = " and ".join(f"{count(each.rows)} {split}" for split, each in packed)
        note = (
            f"{rows} rows of {count(manifest.sequence_length)} tokens, packed by {manifest.packing}, "
            f"tokenizer {manifest.tokenizer.reference}"
        )
        blocks += [Heading(stage.name, note), Row([_sources_table(packed)])]
    return Section("data", "Data", blocks=blocks) if blocks else None


def export_section(run: RunRecord) -> Section | None:
    """Where the exports lie, and how far their logits are from the trained model's."""
    rows = [
        TableRow(
            [f"{stage.name}, {written['format']}", written["path"], scientific(written["largest_difference"])]
        )
        for stage in run.finished("export")
        for written in stage.result["written"]
    ]
    if not rows:
        return None
    text = "Each was loaded again from its files; its logits differ from the trained model's by this much."
    table = Table(["export", "folder", "largest difference"], rows, numeric=(2,))
    return Section("exports", "Exports", text, [Row([table])])


def other_sections(run: RunRecord) -> list[Section]:
    """Stages of other kinds: the table each left in `table.md`, or else the result it reported."""
    sections = []
    for stage in run.stages:
        if stage.kind not in _SHOWN_ELSEWHERE and stage.finished:
            place = storage.join(stage.path, TABLE_FILE)
            written = parse_table(storage.read_text(place)) if storage.exists(place) else None
            text = str(stage.result.get("headline", ""))
            table = written or _result_table(stage)
            sections.append(Section(stage.name, words(stage.name).capitalize(), text, [Row([table])]))
    return sections


def parse_table(markdown: str) -> Table | None:
    """Returns the first table of a Markdown text; None where it has none."""
    lines = [line.strip() for line in markdown.splitlines()]
    rule = next((i for i, line in enumerate(lines) if i and re.fullmatch(r"\|[\s:|-]+\|", line)), None)
    if rule is None:
        return None
    body = list(takewhile(lambda line: line.startswith("|"), lines[rule + 1 :]))
    columns, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[rule - 1], *body)
    )
    starts_like_numbers = [
        all(re.match(r"[-−+±–]?\d|–?$", row[i]) for row in rows) for i in range(len(columns))
    ]
    numeric = [i for i, number in enumerate(starts_like_numbers) if number and i]
    return Table(columns, [TableRow(row) for row in rows], numeric=numeric)


def _sources_table(packed: list[tuple[str, Manifest]]) -> Table:
    rows = [
        TableRow(
            [
                source.source,
                split,
                count(source.documents),
                count(source.tokens),
                percent(source.packed_tokens / max(1, source.tokens), 1),
                count(source.rejected_documents) if split == "training" else "",
            ]
        )
        for split, manifest in packed
        for source in manifest.sources
    ]
    columns = ["source", "split", "documents", "tokens", "of which in rows", "documents rejected"]
    return Table(columns, rows, numeric=range(2, 6))


def _result_table(stage: StageRecord) -> Table:
    rows = [TableRow([words(name), _plain(value)]) for name, value in stage.result.items()]
    return Table(["result", ""], rows)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(name))} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)
