"""What a place is: a local path, or the URL of an object store; and how it becomes the same in every process.

A relative path counts from the folder in which the command was started. Workers of a cluster have other
working directories, so paths are made absolute once, before anything starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(place: str) -> bool:
    """Says whether `place` is an URL of an object store rather than a local path."""
    return _URL.match(place) is not None and not place.startswith("file://")


def local_path(place: str) -> Path:
    """Returns the path of a local place: `~` is expanded, and what follows `file://` taken as written."""
    if place.startswith("file://localhost/"):
        place = place.removeprefix("file://localhost")
    return Path(os.path.expanduser(place.removeprefix("file://")))


def absolute(place: str) -> str:
    """Returns the place as every process understands it; links and `..` stay as they are."""
    return place if is_remote(place) else str(local_path(place).absolute())
