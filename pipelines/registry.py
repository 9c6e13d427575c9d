"""The table of stage kinds: what `stages.<name>.<kind>` may be, and which function runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InvalidKeyError, nearest
from pipelines.recipe.keys.section import CheckContext, Context, Stage

# A runner takes its own subclass of Stage; Callable is contravariant in its arguments, so Any stands for it.
Runner = Callable[[Any, Context], Mapping[str, Any]]
Planner = Callable[[Any, CheckContext], Mapping[str, str]]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    Attributes:
        name: the key in a recipe.
        model: the pydantic model of the keys below it.
        run: does the work and returns a small JSON-able summary; the final table shows its `headline`.
        plan: what `espan plan` shows; None for the model's own `Stage.plan`.
    """

    name: str
    model: type[Stage]
    run: Runner
    plan: Planner | None = None

    def describe(self, stage: Stage, context: CheckContext) -> Mapping[str, str]:
        """Returns what `espan plan` prints for `stage`."""
        return self.plan(stage, context) if self.plan else stage.plan(context)


_registered: dict[str, StageKind] = {}
_modules: dict[str, str] = {}


def register(kind: StageKind) -> StageKind:
    """Adds a kind to the table; called where the kind is defined.

    Raises:
        ValueError: another kind of that name is registered.
    """
    if _registered.setdefault(kind.name, kind) != kind:
        raise ValueError(f"stage kind {kind.name!r} is registered twice")
    return kind


def declare(name: str, module: str) -> None:
    """Says that importing `module` registers the kind `name`; it is imported when a recipe first uses it."""
    _modules[name] = module


def stage_kinds() -> tuple[str, ...]:
    """Returns the names of all kinds, imported or only declared."""
    return tuple(dict.fromkeys((*_modules, *_registered)))


def stage_kind(name: str) -> StageKind:
    """Returns the kind `name`, importing its module on first use.

    Raises:
        InvalidKeyError: there is no such kind.
    """
    if name not in _registered and name in _modules:
        importlib.import_module(_modules[name])
    if name not in _registered:
        known = ", ".join(stage_kinds())
        raise InvalidKeyError(
            "", f"unknown kind of stage '{name}' (known: {known})", nearest(name, stage_kinds())
        )
    return _registered[name]
