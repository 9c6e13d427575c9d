"""What every kind of stage is made of: the keys a user writes, and what its runner is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from pipelines.errors import InvalidKeyError, nearest
from pipelines.recipe.path_keys import Reference
from pipelines.system import storage
from pipelines.system.progress import Progress

if TYPE_CHECKING:
    from pipelines.recipe.parse import ResolvedRecipe

ALL_EARLIER = "*"
"""Returned by `Stage.references` to depend on every stage before this one."""


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


class Stage(Section):
    """Base of every `...Stage`: the keys below `stages.<name>.<kind>`.

    Parsing must stay light: a module that defines a stage imports torch, ray and transformers inside the
    functions that use them.

    `execution_keys` names the keys that say how the work is done and not what comes out (`workers`,
    `log_every`): they are left out of the fingerprint, so an unfinished stage goes on after they changed.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset()

    def references(self) -> tuple[str, ...]:
        """Returns the values that may name an earlier stage; one that does not is left to `check`."""
        return ()

    def external_inputs(self) -> tuple[str, ...]:
        """Returns paths, folders and globs whose *content* decides whether the stage must run again.

        Those that name an earlier stage, or lie below one, and those where nothing is, count for nothing.
        """
        return ()

    def files_read(self) -> tuple[str, ...]:
        """Returns files that count likewise, for a stage that does not read every file of a folder."""
        return ()

    def check(self, context: CheckContext) -> None:
        """Looks at what only the machine can tell (files, models, memory), before any stage starts.

        Raises:
            InvalidKeyError: names the key, relative to this stage.
        """

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """Returns what `espan plan` prints: label -> text, for instance `shapes`, `memory`."""
        return {}


@dataclass(frozen=True)
class EarlierStage:
    """A stage that comes before another in the recipe, as seen while checking and planning."""

    name: str
    kind: str
    stage: Stage
    output: str


@dataclass(frozen=True)
class CheckContext:
    """What `Stage.check` and `Stage.plan` may look at.

    Attributes:
        earlier: every stage before this one, by name.
        planning: the recipe is planned here, and may be meant to run elsewhere.
        state: what lies in `output` when a plan is made: `new`, `unfinished` or `finished` work of exactly
            this stage, or `changed`, that of another.
    """

    name: str
    output: str
    seed: int
    workspace: str
    earlier: Mapping[str, EarlierStage]
    planning: bool = False
    state: str = "new"

    @property
    def finished(self) -> bool:
        """Says whether nothing is left to do, so that nothing needs to be known of models for a plan."""
        return self.state == "finished"

    def require_stage_or_path(self, key: str, value: str, *, kinds: tuple[str, ...]) -> EarlierStage | None:
        """Returns the earlier stage called `value`, or None when `value` is an existing path.

        Raises:
            InvalidKeyError: it is neither, or the stage's kind is not one of `kinds`.
        """
        if value in self.earlier:
            found = self.earlier[value]
            if found.kind in kinds:
                return found
            expected = " or ".join(kinds)
            raise InvalidKeyError(
                key, f"stage '{value}' is of kind {found.kind}, but {expected} is needed here"
            )
        if storage.exists(value):
            return None
        names = [name for name, earlier in self.earlier.items() if earlier.kind in kinds]
        raise InvalidKeyError(
            key, f"'{value}' is neither an earlier stage nor a path that exists", nearest(value, names)
        )


@dataclass(frozen=True)
class StageOutput:
    """What a finished stage left behind: its folder and the summary its runner returned."""

    name: str
    kind: str
    path: str
    result: Mapping[str, Any]
    fingerprint: str
    stage: Stage


@dataclass(frozen=True)
class Context:
    """What a runner is given.

    Attributes:
        name: the stage's name in the recipe.
        output: the folder (a path or an fsspec URL) that belongs to this stage alone. It exists.
        seed: the recipe's seed.
        inputs: finished stages by name, those that `Stage.references` named.
        workspace: the run's folder.
        recipe: the whole recipe, variables filled in.
        progress: where to report how far the work is.
        resuming: `output` holds what an earlier, unfinished run of exactly this stage wrote.
    """

    name: str
    output: str
    seed: int
    inputs: Mapping[str, StageOutput]
    workspace: str
    recipe: ResolvedRecipe
    progress: Progress = field(default_factory=Progress)
    resuming: bool = False
