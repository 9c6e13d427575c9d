"""How a recipe names a model or a tokenizer without a path: `builtin:NAME`, or a name on the model hub."""

from __future__ import annotations

import re

from pipelines.errors import InvalidKeyError, nearest

BUILTIN_PREFIX = "builtin:"
BUILTIN_NAMES = ("tiny", "ruler-tiny")
MAIN_REVISION = "main"

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


def is_builtin(reference: str) -> bool:
    """Says whether `reference` names something that ships with the package, such as `builtin:tiny`."""
    return reference.startswith(BUILTIN_PREFIX)


def builtin_name(reference: str) -> str:
    """Returns the name in `builtin:NAME` (or `NAME` alone).

    Raises:
        InvalidKeyError: nothing of that name ships with the package.
    """
    name = reference.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_NAMES:
        known = [BUILTIN_PREFIX + each for each in BUILTIN_NAMES]
        what = f"nothing called '{reference}' ships with the package (known: {', '.join(known)})"
        raise InvalidKeyError("", what, nearest(reference, known))
    return name


def is_hub_name(reference: str) -> bool:
    """Says whether `reference` is spelt like a name on the model hub: `[owner/]name[@revision]`."""
    name, at, revision = reference.partition("@")
    return _HUB_NAME.fullmatch(name) is not None and bool(revision or not at) and not name.endswith(".json")


def split_reference(reference: str) -> tuple[str, str]:
    """Returns name and revision of a hub reference; `main` where it gives none."""
    name, _, revision = reference.partition("@")
    return name, revision or MAIN_REVISION
