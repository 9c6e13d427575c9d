"""The table of a comparison, written from what its trials left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.evaluate.scores import Scores, TaskScore
from pipelines.system import storage
from tuning.compare import run as compare
from tuning.compare.keys import CompareKeys
from tuning.compare.trials import trials_of
from tuning.study.table import RESULTS_FILE
from tuning.study.trials import TRIAL_FILE, read_result

FOUND = {"asked": 0.5, "not_asked": 0.25, "chance": 0.125, "distinct": 0.75}
TRAIN = {
    "data": "corpus",
    "model": "builtin:tiny",
    "attention": "full",
    "steps": 2,
    "tokens_per_step": 256,
    "learning_rate": 1e-3,
}
KEYS = CompareKeys.model_validate(
    {
        "train": TRAIN,
        "evaluate": {"recall": {"lengths": [128], "samples": 2}},
        "variants": {"untrained": None, "full": {}, "SE-Attn": {"attention": "span"}},
        "seeds": [0, 1],
    }
)


def table_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, records: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The rows and `results.json` of a comparison whose trials left `records` behind, by their names."""
    trials = trials_of(KEYS, 0)
    for trial in trials:
        place = str(folder / trial.name)
        record = {"trial": trial.name, "loss": 1.0, "label": dict(trial.label), **records.get(trial.name, {})}
        Scores(
            model="",
            attention={"kind": "full"},
            precision="fp32",
            seed=0,
            seconds=1.0,
            tasks=(TaskScore.of_recall("single", 128, [[True], [False]]),),
        ).write(storage.join(place, "scores"))
        storage.write_json_atomic(storage.join(place, TRIAL_FILE), record)
    monkeypatch.setattr(
        compare, "run_trials", lambda *_: [read_result(trial, str(folder)) for trial in trials]
    )
    result = compare.run(KEYS, Context("comparison", str(folder), 0, {}, str(folder), {}))
    return result["rows"], json.loads((folder / RESULTS_FILE).read_text())


def test_what_a_variant_found_is_the_mean_over_its_seeds_and_others_leave_their_cells_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {
        "full-0": {"retrieval": None},
        "se-attn-0": {"retrieval": FOUND},
        "se-attn-1": {"retrieval": {"asked": 0.75, "chance": 0.125, "distinct": 1.0}},
    }
    rows, results = table_of(tmp_path, monkeypatch, records)
    columns = ("asked found", "others found", "chance")
    assert [[row[column] for column in columns] for row in rows] == [
        ["", "", ""],
        ["", "", ""],
        ["0.625 ± 1.588", "0.250", "0.125 ± 0.000"],
    ]
    head = (tmp_path / "table.md").read_text().splitlines()[0]
    assert [cell.strip() for cell in head.split("|")][-4:-1] == list(columns)
    raw = {(one["variant"], one["seed"]): one["retrieval"] for one in results["outcomes"]}
    assert raw["SE-Attn", 0] == FOUND
    assert raw["full", 0] is raw["untrained", 0] is None


def test_where_nothing_was_asked_the_table_has_no_such_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = table_of(tmp_path, monkeypatch, {})
    assert [list(row) for row in rows] == [["variant", "runs", "recall at 128"]] * 3
