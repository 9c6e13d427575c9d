"""What the train stages did, as a part of the page: curves, block retrieval, and which parameters trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.report import charts
from pipelines.report.blocks import Block, Chart, Heading, LegendEntry, Row, Section, Table, TableRow, Tile
from pipelines.report.records import RunRecord, StageRecord
from pipelines.report.text import count, duration, percent, short, words
from pipelines.system import storage
from pipelines.train.worker.metrics import METRICS_FILE, read_metrics

Records = Sequence[Mapping[str, Any]]

COVERAGE_FILE = "coverage.json"

# name in metrics.jsonl -> title, how to read it, whether the axis begins at zero
_CURVES = {
    "loss": ("Loss", "nats per target token", False),
    "learning_rate": ("Learning rate", "of every update", True),
    "gradient_norm": ("Gradient norm", "before clipping", True),
    "tokens_per_second": ("Speed", "tokens per second, all workers", True),
}
_RETRIEVAL = {
    "retrieval_filled": ("Span filled", "share of the expansion span's places that hold a block", True),
    "retrieval_distance": ("Distance", "mean tokens between a chunk and the blocks it retrieves", True),
    "retrieval_distinct": (
        "Distinct blocks",
        "share of all retrievable blocks that some chunk retrieves",
        True,
    ),
}
_FOUND_TITLE = "Needles found"
_FOUND = {
    # name in metrics.jsonl -> what the legend calls it, its colour
    "retrieval_asked": ("asked", 1),
    "retrieval_not_asked": ("not asked", 2),
    "retrieval_chance": ("chance", 0),
}


def tiles(run: RunRecord) -> list[Tile]:
    """How long the last training was, and how much of its model trained."""
    stages = run.finished("train")
    if not stages:
        return []
    last = stages[-1]
    keys = last.keys
    tokens = keys["steps"] * keys["tokens_per_step"]
    numbers = [
        Tile(
            "Training",
            f"{count(keys['steps'])} steps",
            f"{short(tokens)} tokens, {duration(last.finished['seconds'])}",
        )
    ]
    rows = _coverage(last)
    if rows:
        trainable, total = _sums(rows)
        numbers.append(
            Tile(
                "Trainable",
                percent(trainable / total, 1),
                f"{short(trainable)} of {short(total)} parameters",
            )
        )
    return numbers


def section(run: RunRecord) -> Section | None:
    """Curves, block retrieval and coverage of every train stage that has come far enough to have any."""
    blocks: list[Block] = []
    for stage in run.stages:
        if stage.kind != "train":
            continue
        records = read_metrics(storage.join(stage.path, METRICS_FILE))
        if records:
            blocks += _stage_blocks(stage, records)
    if not blocks:
        return None
    text = "Thin lines are single steps, thick ones a moving average over a tenth of the training."
    return Section("training", "Training", text, blocks)


def _stage_blocks(stage: StageRecord, records: Records) -> list[Block]:
    attention, tuning = stage.keys["attention"], stage.keys["hylora"]
    trains = "every parameter" if tuning is None else f"{tuning['variant']}, rank {tuning['rank']}"
    note = f"{words(attention['kind'])} attention, {trains}"
    if not stage.finished:
        note += f", {count(records[-1]['step'])} of {count(stage.keys['steps'])} steps so far"
    blocks: list[Block] = [Heading(stage.name, note)]
    blocks.append(Row(_charts(stage, records, _CURVES), across=2))
    retrieval = _charts(stage, records, _RETRIEVAL, size="third")
    if retrieval:
        blocks.append(Row(retrieval, across=3))
    found = [record for record in records if "retrieval_asked" in record]
    if found:
        blocks.append(Row([_found_chart(stage, found), _found_table(found[-1])], across=2))
    rows = _coverage(stage)
    if rows:
        blocks.append(Row([_coverage_table(rows)]))
    return blocks


def _charts(
    stage: StageRecord, records: Records, wanted: Mapping[str, tuple[str, str, bool]], size: str = "half"
) -> list[Chart]:
    drawn = []
    for name, (title, note, from_zero) in wanted.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            steps, values = zip(*points, strict=True)
            svg = charts.over_steps(
                [charts.Series(title, steps, values)],
                label=f"{title} of {stage.name} over steps",
                from_zero=from_zero,
                size=size,
            )
            drawn.append(Chart(title, svg, note))
    return drawn


def _found_chart(stage: StageRecord, records: Records) -> Chart:
    drawn, legend = [], []
    for name, (label, colour) in _FOUND.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            steps, values = zip(*points, strict=True)
            drawn.append(charts.Series(label, steps, values, colour=colour))
            legend.append(LegendEntry(label, colour))
    picture = charts.over_steps(drawn, label=f"{_FOUND_TITLE} of {stage.name} over steps", from_zero=True)
    note = (
        "share of needles whose block is among those chosen: asked above not asked is relevance, both above "
        "chance salience"
    )
    return Chart(_FOUND_TITLE, picture, note, legend)


def _found_table(record: Mapping[str, Any]) -> Table:
    asked = record["retrieval_asked_by_head"]
    others = record.get("retrieval_not_asked_by_head") or [[None] * len(heads) for heads in asked]
    rows = [
        TableRow([str(layer), str(head), *("–" if share is None else percent(share, 1) for share in shares)])
        for layer, heads in enumerate(zip(asked, others, strict=True))
        for head, shares in enumerate(zip(*heads, strict=True))
    ]
    return Table(
        ["attention layer", "key/value head", "asked", "not asked"],
        rows,
        "Needles found by layer and head",
        f"In step {count(record['step'])}.",
        numeric=range(4),
    )


def _coverage(stage: StageRecord) -> Mapping[str, Mapping[str, int]]:
    """Counts by kind of parameter; empty as long as the stage has not written them."""
    place = storage.join(stage.path, COVERAGE_FILE)
    kinds: Mapping[str, Mapping[str, int]] = (
        storage.read_json(place)["kinds"] if storage.exists(place) else {}
    )
    return kinds


def _sums(rows: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    return sum(row["trainable_parameters"] for row in rows.values()), sum(
        row["parameters"] for row in rows.values()
    )


def _coverage_table(rows: Mapping[str, Mapping[str, int]]) -> Table:
    body = [
        TableRow([words(kind), f"{row['trainable_tensors']} of {row['tensors']}", *_numbers(row)])
        for kind, row in rows.items()
    ]
    trainable, total = _sums(rows)
    body.append(
        TableRow(["all", "", *_numbers({"trainable_parameters": trainable, "parameters": total})], total=True)
    )
    return Table(
        ["kind", "tensors that train", "trainable numbers", "parameters", "share"],
        body,
        "What trains",
        "Of low-rank updates the numbers that receive gradients count; they can be more than the matrix has.",
        numeric=range(1, 5),
    )


def _numbers(row: Mapping[str, int]) -> list[str]:
    share = row["trainable_parameters"] / row["parameters"] if row["parameters"] else 0.0
    return [count(row["trainable_parameters"]), count(row["parameters"]), percent(share, 1)]
