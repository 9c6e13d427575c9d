"""Runs a search and writes its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.context import Context
from tuning.study.run import run_trials
from tuning.study.table import markdown, write_study
from tuning.study.trials import TrialResult
from tuning.tune.keys import TuneKeys
from tuning.tune.trials import trials_of


def run(keys: TuneKeys, context: Context) -> Mapping[str, Any]:
    """Runs the search and writes `table.md` and `results.json`, the best trial first."""
    trials = trials_of(keys, context.seed)

    def write(found: Sequence[TrialResult]) -> list[TrialResult]:
        return _write(found, len(trials), context.output)

    ordered = write(run_trials(trials, keys, context, write))
    rows = [_row(outcome) for outcome in ordered]
    context.progress.message(markdown(list(rows[0]), rows))
    best, longest = ordered[0], max(ordered[0].recall)
    settings = ", ".join(f"{key} {value}" for key, value in best.trial.label.items())
    headline = f"best of {len(ordered)}: recall {best.recall[longest]:.1%} with {settings}"
    return {"headline": headline, "best": best.trial.name, "rows": rows}


def _write(outcomes: Sequence[TrialResult], trials: int, output: str) -> list[TrialResult]:
    """Writes the table of what is there, and returns the outcomes in its order."""
    longest = max(outcomes[0].recall)
    ordered = sorted(outcomes, key=lambda outcome: -outcome.recall[longest])
    rows = [_row(outcome) for outcome in ordered]
    table, objective = markdown(list(rows[0]), rows), f"recall at {longest:,}"
    write_study(output, table, rows, finished=len(outcomes), trials=trials, objective=objective)
    return ordered


def _row(outcome: TrialResult) -> dict[str, str]:
    recall = {f"recall at {length:,}": f"{value:.3f}" for length, value in outcome.recall.items()}
    return {"trial": outcome.trial.name, **outcome.trial.label, **recall, "loss": f"{outcome.loss:.3f}"}
