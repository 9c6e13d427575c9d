"""The keys of a compare stage: named variants of one training, each over several seeds."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipelines.errors import InvalidKeyError
from tuning.study.keys import StudyKeys, absolute_change, with_changes

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class CompareKeys(StudyKeys):
    """The keys below `compare:`; see also `StudyKeys`.

    Attributes:
        variants: name -> what differs from `train`, as dotted keys (`attention`, `hylora.variant`); null is
            the original model, scored once and not trained.
        seeds: each trained variant runs once with each seed.
        seeds_of: variant -> its seeds, where they are not `seeds`.
        baseline: the variant that the others are compared with, seed by seed.
        floor, ceiling: names of the variants between which the others are placed: 0% is the floor's recall at
            the greatest length, 100% the ceiling's.
    """

    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=2)]
    seeds: Seeds = (0, 1, 2)
    seeds_of: Annotated[dict[str, Seeds], Field(default_factory=dict)]
    baseline: str | None = None
    floor: str | None = None
    ceiling: str | None = None

    @model_validator(mode="after")
    def _variants_are_possible(self) -> CompareKeys:
        for name, changes in self.variants.items():
            if changes is not None:
                with_changes(self.train, changes, f"variants.{name}")
        seeded = [("baseline", self.baseline), *(("seeds_of", name) for name in self.seeds_of)]
        for key, named in [*seeded, ("floor", self.floor), ("ceiling", self.ceiling)]:
            if named is not None and named not in self.variants:
                raise InvalidKeyError(key, f"there is no variant '{named}'")
        for key, named in seeded:
            if named is not None and self.variants[named] is None:
                raise InvalidKeyError(key, f"variant '{named}' is not trained and has no seeds")
        if (self.floor is None) != (self.ceiling is None):
            raise InvalidKeyError("floor", "set both floor and ceiling, or neither")
        if len({slug(name) for name in self.variants}) < len(self.variants):
            raise InvalidKeyError(
                "variants", "two names would share a folder: they differ in case and punctuation only"
            )
        return self

    def seeds_for(self, variant: str) -> tuple[int, ...]:
        """Returns the seeds that a trained variant runs with."""
        return self.seeds_of.get(variant, self.seeds)

    def _absolute_values(self, stages: Collection[str]) -> dict[str, Any]:
        variants = {
            name: changes and {key: absolute_change(key, value, stages) for key, value in changes.items()}
            for name, changes in self.variants.items()
        }
        return {**super()._absolute_values(stages), "variants": variants}


def slug(name: str) -> str:
    """Returns the folder's name for a variant."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus")).strip("-")
