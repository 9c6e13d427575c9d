"""Files that ship inside the package, by the name after `builtin:`."""

from __future__ import annotations

from pathlib import Path

from pipelines.recipe.references import builtin_name

_FOLDERS = {"tiny": "tiny-hybrid", "ruler-tiny": "ruler-tiny-hybrid"}


def builtin(reference: str) -> Path:
    """Returns the folder that `builtin:NAME` (or `NAME` alone) stands for.

    Raises:
        InvalidKeyError: there is no such thing.
    """
    return Path(__file__).parents[1] / "assets" / _FOLDERS[builtin_name(reference)]
