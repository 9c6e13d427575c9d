"""Runs a comparison and writes its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.context import Context
from pipelines.statistics import Estimate, paired
from tuning.compare.keys import CompareKeys
from tuning.compare.trials import trials_of
from tuning.study.run import run_trials
from tuning.study.table import markdown, write_study
from tuning.study.trials import TrialResult


def run(keys: CompareKeys, context: Context) -> Mapping[str, Any]:
    """Runs the comparison and writes `table.md` and `results.json`: means over the seeds, 95% intervals."""

    trials = trials_of(keys, context.seed)

    def write(found: Sequence[TrialResult]) -> dict[str, Any]:
        return _write(keys, found, len(trials), context.output)

    outcomes = run_trials(trials, keys, context, write)
    written = write(outcomes)
    context.progress.message(written["table"])
    longest = max(outcomes[0].recall)
    by_variant = _by_variant(keys, outcomes)
    best = max(by_variant, key=lambda name: _mean_recall(by_variant[name], longest))
    headline = f"{len(by_variant)} variants x {len(keys.seeds)} seeds; best at {longest:,}: {best}"
    return {"headline": headline, "gap_closed": written["gap_closed"], "rows": written["rows"]}


_RETRIEVAL = {"asked found": "asked", "others found": "not_asked", "chance": "chance"}
"""Columns of the table, and what trainings call them."""


def _by_variant(keys: CompareKeys, outcomes: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Returns the outcomes of each variant that has any, in the recipe's order."""
    found = {name: [one for one in outcomes if one.trial.label["variant"] == name] for name in keys.variants}
    return {name: ones for name, ones in found.items() if ones}


def _write(keys: CompareKeys, outcomes: Sequence[TrialResult], trials: int, output: str) -> dict[str, Any]:
    """Writes the table of what is there, and returns it with the rows behind it."""
    by_variant = _by_variant(keys, outcomes)
    closed = _gap_closed(keys, by_variant, max(outcomes[0].recall))
    against = _differences(keys, by_variant, max(outcomes[0].recall))
    columns = _RETRIEVAL if any(one.retrieval for one in outcomes) else {}
    rows = [_row(name, found, columns, closed.get(name)) for name, found in by_variant.items()]
    for row in rows if against else []:
        difference = against.get(row["variant"])
        row[f"less {keys.baseline}"] = difference.text(sign=True) if difference else ""
    table = markdown(list(rows[0]), rows)
    raw = [
        {
            "variant": one.trial.label["variant"],
            "seed": one.trial.seed,
            "tasks": one.tasks,
            "perplexity": one.perplexity,
            "loss": one.loss,
            "retrieval": one.retrieval,
        }
        for one in outcomes
    ]
    write_study(
        output,
        table,
        rows,
        finished=len(outcomes),
        trials=trials,
        gap_closed=closed,
        differences={name: asdict(difference) for name, difference in against.items()},
        outcomes=raw,
    )
    return {"table": table, "rows": rows, "gap_closed": closed}


def _mean_recall(outcomes: Sequence[TrialResult], length: int) -> float:
    return sum(outcome.recall[length] for outcome in outcomes) / len(outcomes)


def _gap_closed(
    keys: CompareKeys, by_variant: Mapping[str, Sequence[TrialResult]], length: int
) -> dict[str, float]:
    """Returns where each variant's recall stands between the floor's (0) and the ceiling's (1)."""
    ends = [by_variant[name] for name in (keys.floor, keys.ceiling) if name and name in by_variant]
    if len(ends) < 2:
        return {}
    low, high = (_mean_recall(end, length) for end in ends)
    if high <= low:
        return {}
    return {name: (_mean_recall(found, length) - low) / (high - low) for name, found in by_variant.items()}


def _differences(
    keys: CompareKeys, by_variant: Mapping[str, Sequence[TrialResult]], length: int
) -> dict[str, Estimate]:
    """Returns how much more each trained variant recalls than the baseline, over the seeds of both."""
    recall = {
        name: {one.trial.seed: one.recall[length] for one in found}
        for name, found in by_variant.items()
        if keys.variants[name] is not None
    }
    if keys.baseline not in recall:
        return {}
    differences = {
        name: paired(ones, recall[keys.baseline]) for name, ones in recall.items() if name != keys.baseline
    }
    return {name: Estimate.of(found) for name, found in differences.items() if found}


def _row(
    name: str, outcomes: Sequence[TrialResult], retrieval: Mapping[str, str], closed: float | None
) -> dict[str, str]:
    row = {"variant": name, "runs": str(len(outcomes))}
    for length in outcomes[0].recall:
        row[f"recall at {length:,}"] = Estimate.of([outcome.recall[length] for outcome in outcomes]).text()
    for length in outcomes[0].perplexity:
        row[f"perplexity at {length:,}"] = Estimate.of([one.perplexity[length] for one in outcomes]).text(2)
    for column, measured in retrieval.items():
        values = [one.retrieval[measured] for one in outcomes if one.retrieval and measured in one.retrieval]
        row[column] = Estimate.of(values).text() if values else ""
    if closed is not None:
        row["gap closed"] = f"{closed:.0%}"
    return row
