"""The keys of a `tune` stage, and the search over them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.section import CheckContext, Context
from tuning.execute import run_trials
from tuning.study import StudyStage, absolute_change, with_changes
from tuning.table import markdown, write_study
from tuning.trials import Outcome, Trial

Candidates = Annotated[tuple[Any, ...], Field(min_length=1)]


class TuneStage(StudyStage):
    """The keys below `tune:`; see also `StudyStage`.

    Attributes:
        space: dotted key of the training (`attention.top_k`) -> the values to try. Combinations that make no
            valid training (a chunk that is no multiple of the block) are left out.
        trials: how many combinations to try, drawn without repetition; None: all of them.
    """

    space: Annotated[dict[str, Candidates], Field(min_length=1)]
    trials: PositiveInt | None = None

    @model_validator(mode="after")
    def _every_value_is_possible(self) -> TuneStage:
        for key, values in self.space.items():
            unknown = [value for value in values if isinstance(value, dict)]
            if unknown:
                raise InvalidKeyError(f"space.{key}", "lists plain values, numbers or lists of them")
        if not self.combinations():
            raise InvalidKeyError("space", "no combination of these values gives a valid training")
        return self

    def _absolute_values(self, stages: Collection[str]) -> dict[str, Any]:
        space = {
            key: tuple(absolute_change(key, value, stages) for value in values)
            for key, values in self.space.items()
        }
        return {**super()._absolute_values(stages), "space": space}

    def combinations(self) -> list[dict[str, Any]]:
        """Returns the combinations that make a valid training, in the order of the space."""
        valid, problem = [], None
        for values in itertools.product(*self.space.values()):
            changes = dict(zip(self.space, values, strict=True))
            try:
                with_changes(self.train, changes, "space")
            except InvalidKeyError as error:
                problem = error
                continue
            valid.append(changes)
        if not valid and problem is not None:
            raise problem
        return valid

    def make_trials(self, seed: int) -> list[Trial]:
        """Returns the trials of this search; `seed` draws them where not all are tried."""
        chosen = self.combinations()
        if self.trials is not None and self.trials < len(chosen):
            picked = random.Random(f"trials {seed}").sample(range(len(chosen)), self.trials)
            chosen = [chosen[i] for i in sorted(picked)]
        return [
            Trial(
                name=f"trial-{number:03d}",
                seed=seed,
                label={key: json.dumps(value) for key, value in changes.items()},
                train=with_changes(self.train, changes, "space"),
                model="",
            )
            for number, changes in enumerate(chosen)
        ]

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """How many trials of which length."""
        count = len(self.make_trials(context.seed))
        return {"trials": f"{count}, {self.concurrent} at a time", **self.train.plan(context)}


def run(stage: TuneStage, context: Context) -> Mapping[str, Any]:
    """Runs the search and writes `table.md` and `results.json`, the best trial first."""

    trials = stage.make_trials(context.seed)

    def write(found: Sequence[Outcome]) -> list[Outcome]:
        return _write(found, len(trials), context.output)

    ordered = write(run_trials(trials, stage, context, write))
    rows = [_row(outcome) for outcome in ordered]
    context.progress.message(markdown(list(rows[0]), rows))
    best, longest = ordered[0], max(ordered[0].recall)
    settings = ", ".join(f"{key} {value}" for key, value in best.trial.label.items())
    headline = f"best of {len(ordered)}: recall {best.recall[longest]:.1%} with {settings}"
    return {"headline": headline, "best": best.trial.name, "rows": rows}


def _write(outcomes: Sequence[Outcome], trials: int, output: str) -> list[Outcome]:
    """Writes the table of what is there, and returns the outcomes in its order."""
    longest = max(outcomes[0].recall)
    ordered = sorted(outcomes, key=lambda outcome: -outcome.recall[longest])
    rows = [_row(outcome) for outcome in ordered]
    table, objective = markdown(list(rows[0]), rows), f"recall at {longest:,}"
    write_study(output, table, rows, finished=len(outcomes), trials=trials, objective=objective)
    return ordered


def _row(outcome: Outcome) -> dict[str, str]:
    recall = {f"recall at {length:,}": f"{value:.3f}" for length, value in outcome.recall.items()}
    return {"trial": outcome.trial.name, **outcome.trial.label, **recall, "loss": f"{outcome.loss:.3f}"}
