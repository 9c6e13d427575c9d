"""The recipe language: one YAML file that names a run, its workspace, its seed and its stages in order.

Relative paths in a recipe start from the folder where the command runs, as in every other argument;
`~` is the home folder there. Reading a recipe makes them absolute, so they mean the same in every process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from pipelines.errors import InvalidKeyError, RecipeError, did_you_mean, nearest, split_key
from pipelines.kinds import StageKind, stage_kind
from pipelines.recipe.keys.section import ALL_EARLIER, Section, StageKeys
from pipelines.recipe.path_keys import NotEmpty
from pipelines.recipe.problems import coerced_values, validation_problems
from pipelines.recipe.variables import fill_in, override
from pipelines.recipe.yaml_source import KeyPath, YamlSource, read_yaml

RESERVED_NAMES = frozenset({"all", "builtin", "new", "none"})
"""Names with a meaning of their own wherever a stage may be named."""

STAGE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")

AnySection = TypeVar("AnySection", bound=Section)
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class RecipeFile(Section):
    """The top level of a recipe.

    Attributes:
        name: the run's name, for people and dashboards.
        workspace: the folder, local or in an object store, below which every stage has one of its own;
            default: `runs/` and the name.
        seed: seed of all random draws.
        variables: values that `${name}` stands for elsewhere; `--set name=value` replaces one.
        stages: in the order in which they run: a name, and below it the kind and its keys.
    """

    name: Name
    workspace: Annotated[str, NotEmpty] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    variables: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class ResolvedStage:
    """One stage of a recipe.

    Attributes:
        name: as the recipe names it.
        kind: its row in the table of kinds.
        keys: parsed, and their paths absolute; `keys.written` has them as the recipe does.
        depends: the names of the earlier stages it uses, in the recipe's order.
    """

    name: str
    kind: StageKind
    keys: StageKeys
    depends: tuple[str, ...]


@dataclass(frozen=True)
class ResolvedRecipe:
    """A whole recipe: variables filled in, every stage parsed, every reference known to exist."""

    name: str
    workspace: str
    seed: int
    variables: Mapping[str, Any]
    stages: Mapping[str, ResolvedStage]
    source: YamlSource

    def as_dict(self) -> dict[str, Any]:
        """Returns the recipe with every default spelt out, JSON-able; it parses to the same recipe."""
        stages = {s.name: {s.kind.name: s.keys.written.model_dump(mode="json")} for s in self.stages.values()}
        return {"name": self.name, "workspace": self.workspace, "seed": self.seed, "stages": stages}

    def problem(self, stage: str, error: InvalidKeyError) -> str:
        """Returns the line that reports what a stage's check refused."""
        kind = self.stages[stage].kind.name
        return self.source.problem(
            ("stages", stage, kind, *split_key(error.key)), error.what, error.suggestion
        )


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Returns the recipe file `name`, or the shipped recipe of that name.

    Raises:
        RecipeError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    nearby = [str(path) for path in Path(name).parent.glob("*.yaml")]
    raise RecipeError(f"{name}: there is no such recipe{did_you_mean(nearest(name, [*nearby, *shipped]))}")


def read_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> ResolvedRecipe:
    """Reads and checks a recipe as far as that is possible without looking at anything else.

    Args:
        path: the YAML file.
        overrides: values for variables that the recipe declares, as text (`--set name=value`).

    Raises:
        RecipeError: everything that is wrong with it, one line each.
    """
    return resolve(read_yaml(path), overrides or {})


def resolve(source: YamlSource, overrides: Mapping[str, str]) -> ResolvedRecipe:
    """Turns parsed YAML into a recipe; see `read_recipe`."""
    if not isinstance(source.value, dict):
        raise RecipeError(source.problem((), "a recipe is a mapping with the keys name and stages"))
    source = fill_in(override(source, overrides))
    top = _parse(RecipeFile, source.value, source, ())
    problems: list[str] = []
    stages: dict[str, ResolvedStage] = {}
    names = tuple(top.stages)
    for index, (name, body) in enumerate(top.stages.items()):
        try:
            stages[name] = _resolve_stage(name, body, names[:index], names, source)
        except RecipeError as error:
            problems.extend(error.problems)
    if problems:
        raise RecipeError(problems)
    workspace = top.workspace or f"runs/{top.name}"
    return ResolvedRecipe(top.name, workspace, top.seed, top.variables, stages, source)


def _resolve_stage(
    name: str, body: dict[str, Any], earlier: tuple[str, ...], every: tuple[str, ...], source: YamlSource
) -> ResolvedStage:
    where: KeyPath = ("stages", name)
    if not STAGE_NAME.fullmatch(name):
        what = "a stage's name is made of lower-case letters, digits, - and _, and begins with a letter"
        raise RecipeError(source.problem(where, what))
    if name in RESERVED_NAMES:
        raise RecipeError(source.problem(where, f"'{name}' is reserved; choose another name"))
    if len(body) != 1:
        raise RecipeError(source.problem(where, f"needs exactly one kind of stage, not {len(body)}"))
    written_kind, keys = next(iter(body.items()))
    where = (*where, written_kind)
    try:
        kind = stage_kind(written_kind)
    except InvalidKeyError as error:
        raise RecipeError(source.problem(where, error.what, error.suggestion)) from error
    parsed: StageKeys = _parse(kind.keys_class, {} if keys is None else keys, source, where)
    depends = _depends(parsed, name, earlier, every, source, where)
    return ResolvedStage(name, kind, parsed.absolute(earlier), depends)


def _depends(
    keys: StageKeys,
    name: str,
    earlier: tuple[str, ...],
    every: tuple[str, ...],
    source: YamlSource,
    where: KeyPath,
) -> tuple[str, ...]:
    named = keys.references()
    if ALL_EARLIER in named:
        return earlier
    for value in named:
        if value in every and value not in earlier:
            what = (
                "a stage cannot use itself"
                if value == name
                else f"stage '{value}' comes later; move it before this one"
            )
            raise RecipeError(source.problem(_key_of(value, source, where), what, nearest(value, earlier)))
    return tuple(one for one in earlier if one in named)


def _key_of(value: str, source: YamlSource, where: KeyPath) -> KeyPath:
    """Returns the key below `where` that holds `value`, or `where` itself if no key holds just that."""
    for key in source.lines:
        if key[: len(where)] == where and _at(source.value, key) == value:
            return key
    return where


def _at(value: Any, key: tuple[str | int, ...]) -> Any:
    for part in key:
        value = value[part]
    return value


def _parse(model: type[AnySection], value: Any, source: YamlSource, where: KeyPath) -> AnySection:
    """Validates the mapping written at `where`; text is never taken for a number, nor a number for text."""
    try:
        parsed = model.model_validate(value)
    except ValidationError as error:
        raise RecipeError(validation_problems(error, model, value, source, where)) from None
    if coerced := sorted(coerced_values(value, parsed), key=lambda found: source.line((*where, *found[0]))):
        raise RecipeError([source.problem((*where, *key), what) for key, what in coerced])
    return parsed
