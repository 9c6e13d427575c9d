"""What a kind of stage says before anything starts, and what it is given to look at and to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import InvalidKeyError, nearest
from pipelines.recipe.keys.section import StageKeys
from pipelines.system import storage
from pipelines.system.progress import Progress


@dataclass(frozen=True)
class EarlierStage:
    """A stage that comes before another in the recipe, as seen while checking and planning."""

    name: str
    kind: str
    keys: StageKeys
    output: str


@dataclass(frozen=True)
class CheckContext:
    """What the functions of a `Check` may look at.

    Attributes:
        earlier: every stage before this one, by name.
        planning: the recipe is only planned here and may run elsewhere.
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
        """Says whether nothing is left to do, so that a plan needs to know nothing about models."""
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
    keys: StageKeys


@dataclass(frozen=True)
class Context:
    """What a runner is given.

    Attributes:
        name: the stage's name in the recipe.
        output: the folder (a path or an fsspec URL) that belongs to this stage alone. It exists.
        seed: the recipe's seed.
        inputs: finished stages by name, those that `StageKeys.references` named.
        workspace: the run's folder.
        recipe: the whole recipe as data, variables filled in and defaults spelt out.
        progress: where to report progress.
    """

    name: str
    output: str
    seed: int
    inputs: Mapping[str, StageOutput]
    workspace: str
    recipe: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)

    def path_of(self, reference: str) -> str:
        """Returns the folder of the finished stage called `reference`; anything else is a folder itself."""
        return self.inputs[reference].path if reference in self.inputs else reference


def _no_files(keys: Any) -> tuple[str, ...]:
    return ()


def _nothing_to_refuse(keys: Any, context: CheckContext) -> None:
    return


def _nothing_to_say(keys: Any, context: CheckContext) -> Mapping[str, str]:
    return {}


# Each takes the kind's own keys; Callable is contravariant in its arguments, so Any stands for them.
Runner = Callable[[Any, Context], Mapping[str, Any]]


@dataclass(frozen=True)
class Check:
    """What is asked of a kind of stage before anything starts.

    Attributes:
        check: looks at what only the machine can tell (files, models, memory); raises `InvalidKeyError`,
            which names the key, relative to the stage.
        plan: what `espan plan` prints: label -> text, for instance `shapes`, `memory`.
        external_inputs: paths, folders and patterns whose *content* decides whether the stage must run again.
            Those that name an earlier stage, or lie below one, and paths that do not exist are ignored.
        files_read: files that count likewise, for a stage that does not read every file of a folder.
    """

    check: Callable[[Any, CheckContext], None] = _nothing_to_refuse
    plan: Callable[[Any, CheckContext], Mapping[str, str]] = _nothing_to_say
    external_inputs: Callable[[Any], tuple[str, ...]] = _no_files
    files_read: Callable[[Any], tuple[str, ...]] = _no_files
