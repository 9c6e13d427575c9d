"""The keys of a tune stage: the space to search."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.train import TrainKeys
from tuning.study.keys import StudyKeys, absolute_change, with_changes

Candidates = Annotated[tuple[Any, ...], Field(min_length=1)]


class TuneKeys(StudyKeys):
    """The keys below `tune:`; see also `StudyKeys`.

    Attributes:
        space: dotted key of the training (`attention.top_k`) -> the values to try. Combinations that make no
            valid training (a chunk that is not a multiple of the block) are left out.
        trials: how many combinations to try, drawn without repetition; default: all.
    """

    space: Annotated[dict[str, Candidates], Field(min_length=1)]
    trials: PositiveInt | None = None

    @classmethod
    def decisive(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """As for every stage; but where the space has such a key, all of `train` counts.

        Which combinations are valid may depend on the keys beside it, and so what each numbered trial is.
        """
        kept = super().decisive(keys)
        varied = {key.split(".")[0] for key in keys["space"]}
        return {**kept, "train": keys["train"]} if varied & TrainKeys.execution_keys else kept

    @model_validator(mode="after")
    def _every_value_is_possible(self) -> TuneKeys:
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
