"""The keys of a `compare` stage: named variants of one training, each over several seeds, in one table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.section import CheckContext, Context
from tuning.execute import run_trials
from tuning.study import StudyStage, absolute_change, with_changes
from tuning.table import markdown, mean_and_spread, write_study
from tuning.trials import Outcome, Trial

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class CompareStage(StudyStage):
    """The keys below `compare:`; see also `StudyStage`.

    Attributes:
        variants: name -> what differs from `train`, as dotted keys (`attention`, `hylora.variant`); null is
            the model as it comes, scored once and not trained.
        seeds: each trained variant runs once with each.
        floor, ceiling: names of the variants between which the others are placed: 0% is the floor's recall at
            the greatest length, 100% the ceiling's.
    """

    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=2)]
    seeds: Seeds = (0, 1, 2)
    floor: str | None = None
    ceiling: str | None = None

    @model_validator(mode="after")
    def _variants_are_possible(self) -> CompareStage:
        for name, changes in self.variants.items():
            if changes is not None:
                with_changes(self.train, changes, f"variants.{name}")
        for key in ("floor", "ceiling"):
            name = getattr(self, key)
            if name is not None and name not in self.variants:
                raise InvalidKeyError(key, f"there is no variant '{name}'")
        if (self.floor is None) != (self.ceiling is None):
            raise InvalidKeyError("floor", "floor and ceiling stand together or not at all")
        if len({_slug(name) for name in self.variants}) < len(self.variants):
            raise InvalidKeyError(
                "variants", "two names would share a folder: they differ in case and punctuation only"
            )
        return self

    def _absolute_values(self, stages: Collection[str]) -> dict[str, Any]:
        variants = {
            name: changes and {key: absolute_change(key, value, stages) for key, value in changes.items()}
            for name, changes in self.variants.items()
        }
        return {**super()._absolute_values(stages), "variants": variants}

    def make_trials(self, seed: int) -> list[Trial]:
        """Returns every variant with every seed, seed by seed: what an unfinished study has is comparable."""
        trials = []
        for turn, each in enumerate(self.seeds):
            for name, changes in self.variants.items():
                if changes is None and turn > 0:
                    continue
                train = None if changes is None else with_changes(self.train, changes, f"variants.{name}")
                model = self.train.model if isinstance(self.train.model, str) else ""
                label = {"variant": name}
                trials.append(Trial(f"{_slug(name)}-{each}", each, label, train, model))
        return trials

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """How many trainings of which length."""
        count = len(self.make_trials(context.seed))
        return {"trials": f"{count}, {self.concurrent} at a time", **self.train.plan(context)}


def run(stage: CompareStage, context: Context) -> Mapping[str, Any]:
    """Runs the comparison and writes `table.md` and `results.json`: mean and spread over the seeds."""

    trials = stage.make_trials(context.seed)

    def write(found: Sequence[Outcome]) -> dict[str, Any]:
        return _write(stage, found, len(trials), context.output)

    outcomes = run_trials(trials, stage, context, write)
    written = write(outcomes)
    context.progress.message(written["table"])
    longest = max(outcomes[0].recall)
    by_variant = _by_variant(stage, outcomes)
    best = max(by_variant, key=lambda name: _mean_recall(by_variant[name], longest))
    headline = f"{len(by_variant)} variants x {len(stage.seeds)} seeds; best at {longest:,}: {best}"
    return {"headline": headline, "gap_closed": written["gap_closed"], "rows": written["rows"]}


def _by_variant(stage: CompareStage, outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Returns the outcomes of each variant that has any, in the recipe's order."""
    found = {name: [one for one in outcomes if one.trial.label["variant"] == name] for name in stage.variants}
    return {name: ones for name, ones in found.items() if ones}


def _write(stage: CompareStage, outcomes: Sequence[Outcome], trials: int, output: str) -> dict[str, Any]:
    """Writes the table of what is there, and returns it with the rows behind it."""
    by_variant = _by_variant(stage, outcomes)
    closed = _gap_closed(stage, by_variant, max(outcomes[0].recall))
    rows = [_row(name, found, closed.get(name)) for name, found in by_variant.items()]
    table = markdown(list(rows[0]), rows)
    raw = [
        {
            "variant": one.trial.label["variant"],
            "seed": one.trial.seed,
            "tasks": one.tasks,
            "perplexity": one.perplexity,
            "loss": one.loss,
        }
        for one in outcomes
    ]
    write_study(output, table, rows, finished=len(outcomes), trials=trials, gap_closed=closed, outcomes=raw)
    return {"table": table, "rows": rows, "gap_closed": closed}


def _mean_recall(outcomes: Sequence[Outcome], length: int) -> float:
    return sum(outcome.recall[length] for outcome in outcomes) / len(outcomes)


def _gap_closed(
    stage: CompareStage, by_variant: Mapping[str, Sequence[Outcome]], length: int
) -> dict[str, float]:
    """Returns where each variant's recall stands between the floor's (0) and the ceiling's (1)."""
    ends = [by_variant[name] for name in (stage.floor, stage.ceiling) if name and name in by_variant]
    if len(ends) < 2:
        return {}
    low, high = (_mean_recall(end, length) for end in ends)
    if high <= low:
        return {}
    return {name: (_mean_recall(found, length) - low) / (high - low) for name, found in by_variant.items()}


def _row(name: str, outcomes: Sequence[Outcome], closed: float | None) -> dict[str, str]:
    row = {"variant": name, "runs": str(len(outcomes))}
    for length in outcomes[0].recall:
        row[f"recall at {length:,}"] = mean_and_spread([outcome.recall[length] for outcome in outcomes])
    for length in outcomes[0].perplexity:
        row[f"perplexity at {length:,}"] = mean_and_spread([one.perplexity[length] for one in outcomes], 2)
    if closed is not None:
        row["gap closed"] = f"{closed:.0%}"
    return row


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus")).strip("-")
