"""The kinds of stage: where the keys of each are, what can be said of it before it runs, and what runs it.

Modules are named here and imported when a recipe uses them, so that none costs time where it is not used, and
no kind needs to know another.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InvalidKeyError, nearest


@dataclass(frozen=True)
class StageKind:
    """One kind of stage; each reference is written `module:name`.

    Attributes:
        name: the key in a recipe.
        keys: a `StageKeys`: what may stand below it.
        run: a `Runner`: does the work and returns a small JSON-able summary, whose `headline` the final table
            shows.
        check: a `Check`: what is looked at before anything starts; None if nothing is.
    """

    name: str
    keys: str
    run: str
    check: str | None = None

    @property
    def keys_class(self) -> Any:
        """The `StageKeys` class of this kind."""
        return load(self.keys)


KINDS = {
    kind.name: kind
    for kind in (
        StageKind(
            "prepare",
            keys="pipelines.recipe.keys.prepare:PrepareKeys",
            check="pipelines.prepare.check:CHECK",
            run="pipelines.prepare.run:run",
        ),
        StageKind(
            "train",
            keys="pipelines.recipe.keys.train:TrainKeys",
            check="pipelines.train.check:CHECK",
            run="pipelines.train.run:run",
        ),
        StageKind(
            "evaluate",
            keys="pipelines.recipe.keys.evaluate:EvaluateKeys",
            check="pipelines.evaluate.check:CHECK",
            run="pipelines.evaluate.run:run",
        ),
        StageKind(
            "export",
            keys="pipelines.recipe.keys.export:ExportKeys",
            check="pipelines.export.check:CHECK",
            run="pipelines.export.run:run",
        ),
        StageKind("report", keys="pipelines.recipe.keys.report:ReportKeys", run="pipelines.report.run:run"),
    )
}
"""By name; who offers more kinds (`tuning`) adds rows before a recipe is read."""


def load(reference: str) -> Any:
    """Returns what `module:name` stands for, importing the module."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def stage_kind(name: str) -> StageKind:
    """Returns the kind `name`.

    Raises:
        InvalidKeyError: there is no such kind.
    """
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise InvalidKeyError("", f"unknown kind of stage '{name}' (known: {known})", nearest(name, KINDS))
    return KINDS[name]
