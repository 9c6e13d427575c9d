"""The base of every mapping in a recipe, and of the keys of every kind of stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from pipelines.recipe.path_keys import Reference

ALL_EARLIER = "*"
"""Returned by `StageKeys.references` to depend on every stage before this one."""


class Section(BaseModel):
    """Base of every mapping in a recipe: unknown keys are refused and values never change after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    _written: Any = PrivateAttr(default=None)

    @property
    def written(self) -> Self:
        """The same keys as the recipe has them: fingerprints and labels do not depend on where it was run."""
        return self if self._written is None else self._written

    def absolute(self, stages: Collection[str] = ()) -> Self:
        """Returns these keys with every path made absolute, see `pipelines.recipe.path_keys`.

        Args:
            stages: names of the earlier stages, which keys may hold in place of a path.
        """
        copy = self.model_copy(update=self._absolute_values(stages))
        copy._written = self.written
        return copy

    def _absolute_values(self, stages: Collection[str]) -> dict[str, Any]:
        changed = {}
        for name, information in type(self).model_fields.items():
            mark = next((each for each in information.metadata if isinstance(each, Reference)), None)
            changed[name] = _absolute(getattr(self, name), mark, stages)
        return changed


def _absolute(value: Any, mark: Reference | None, stages: Collection[str]) -> Any:
    if isinstance(value, str):
        return value if mark is None else mark.absolute(value, stages)
    if isinstance(value, tuple):
        return tuple(_absolute(each, mark, stages) for each in value)
    return value.absolute(stages) if isinstance(value, Section) else value


class StageKeys(Section):
    """Base of every `...Keys`: the keys below `stages.<name>.<kind>`.

    `execution_keys` names the keys that say how the work is done and not what comes out (`workers`,
    `log_every`): they are left out of the fingerprint, so an unfinished stage resumes even after they change.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def decisive(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those of dumped `keys` that decide what comes out: all but execution keys.

        Keys of a stage below a key of their own (`train: TrainKeys`) are looked at in the same way.
        """
        nested = {
            name: information.annotation
            for name, information in cls.model_fields.items()
            if isinstance(information.annotation, type) and issubclass(information.annotation, StageKeys)
        }
        return {
            name: nested[name].decisive(value) if name in nested and isinstance(value, Mapping) else value
            for name, value in keys.items()
            if name not in cls.execution_keys
        }

    def references(self) -> tuple[str, ...]:
        """Returns the values that may name an earlier stage; the check looks at those that do not."""
        return ()
