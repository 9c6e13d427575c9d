"""Files that ship inside the package, by the name after `builtin:`."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import InvalidKeyError, nearest

PREFIX = "builtin:"
_FOLDERS = {"tiny": "tiny-hybrid"}


def is_builtin(reference: str) -> bool:
    """Says whether `reference` names something that ships with the package, such as `builtin:tiny`."""
    return reference.startswith(PREFIX)


def builtin(reference: str) -> Path:
    """Returns the folder that `builtin:NAME` (or `NAME` alone) stands for.

    Raises:
        InvalidKeyError: there is no such thing.
    """
    name = reference.removeprefix(PREFIX)
    if name not in _FOLDERS:
        known = ", ".join(PREFIX + each for each in _FOLDERS)
        raise InvalidKeyError(
            "",
            f"nothing called '{reference}' ships with the package (known: {known})",
            nearest(reference, (PREFIX + each for each in _FOLDERS)),
        )
    return Path(__file__).parents[1] / "assets" / _FOLDERS[name]
