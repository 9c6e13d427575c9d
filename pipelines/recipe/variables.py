"""`${name}` in a recipe: values declared under `variables`, overridden with `--set name=value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.errors import EspanError, RecipeError, did_you_mean, nearest
from pipelines.recipe.yaml_source import KeyPath, YamlSource, parse_scalar

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")


def parse_settings(settings: list[str]) -> dict[str, str]:
    """Turns `["books=/x"]` into `{"books": "/x"}`.

    Raises:
        EspanError: one has no `=`.
    """
    pairs = [setting.partition("=") for setting in settings]
    for name, sign, _ in pairs:
        if not sign or not name:
            raise EspanError(f"--set {name}: write it as --set name=value")
    return {name: value for name, _, value in pairs}


def override(source: YamlSource, overrides: Mapping[str, str]) -> YamlSource:
    """Returns the source with variables replaced; a value is read as YAML would read it.

    Raises:
        RecipeError: the recipe declares no such variable.
    """
    declared = source.value.get("variables") or {}
    if not overrides or not isinstance(declared, dict):
        return source
    unknown = [name for name in overrides if name not in declared]
    if unknown:
        known = ", ".join(declared) or "none"
        hints = [(name, did_you_mean(nearest(name, declared))) for name in unknown]
        raise RecipeError(
            [f"{source.path}:{source.line(('variables',))}: variables: --set {name}: no such variable "
             f"(declared: {known}){hint}" for name, hint in hints]
        )  # fmt: skip
    variables = {**declared, **{name: parse_scalar(value) for name, value in overrides.items()}}
    return replace(source, value={**source.value, "variables": variables})


def fill_in(source: YamlSource) -> YamlSource:
    """Returns the source with every `${name}` outside `variables` replaced.

    A value that is nothing but `${name}` takes the variable's type; inside longer text the variable becomes
    text. `$${` stands for a literal `${`.

    Raises:
        RecipeError: a variable that is not declared is used.
    """
    variables = source.value.get("variables") or {}
    if not isinstance(variables, dict):
        return source
    problems: list[str] = []

    def fill(value: Any, key: KeyPath) -> Any:
        if isinstance(value, dict):
            return {name: fill(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*key, i)) for i, item in enumerate(value)]
        return _fill_text(value, key) if isinstance(value, str) else value

    def _fill_text(text: str, key: KeyPath) -> Any:
        unknown = [name for name in _REFERENCE.findall(text) if name and name not in variables]
        if unknown:
            what = f"variable '{unknown[0]}' is not declared under variables"
            problems.append(source.problem(key, what, nearest(unknown[0], variables)))
            return text
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[1]:
            return variables[whole[1]]
        return _REFERENCE.sub(
            lambda found: "${" if found[1] is None else _as_text(variables.get(found[1])), text
        )

    filled = {
        name: item if name == "variables" else fill(item, (name,)) for name, item in source.value.items()
    }
    if problems:
        raise RecipeError(problems)
    return replace(source, value=filled)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
