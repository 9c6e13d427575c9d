"""What a place is: a local path, or the URL of an object store; and how it becomes the same in every process.

A relative path counts from the folder in which the command was started. Workers of a cluster have other
working directories, so paths are made absolute once, before anything starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import fsspec

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHAINED = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]*://")


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


def filesystem(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the fsspec file system of a place, and the place as that file system spells it.

    Nothing in a path or a key has a meaning besides the slashes: `#`, `%` and `::` are ordinary, unless an
    URL follows the colons (`zip://a.txt::s3://bucket/b.zip`).
    """
    if not is_remote(place):
        return fsspec.filesystem("file", use_listings_cache=False), str(local_path(place).absolute())
    if _CHAINED.search(place):
        return fsspec.core.url_to_fs(place, use_listings_cache=False)
    kind = fsspec.get_filesystem_class(place[: place.index("://")])
    options = kind._get_kwargs_from_urls(place)
    return kind(**options, use_listings_cache=False), kind._strip_protocol(place)
