"""The fsspec file system that a path or URL belongs to; nothing outside `system` needs it."""

from __future__ import annotations

import re

import fsspec

from pipelines.system.locations import is_remote, local_path

_CHAINED = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]*://")


def filesystem(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the fsspec file system of a place, and the place as that file system spells it.

    Only slashes have a meaning in a path or a key: `#`, `%` and `::` are ordinary, unless a
    URL follows the colons (`zip://a.txt::s3://bucket/b.zip`).
    """
    if not is_remote(place):
        return fsspec.filesystem("file", use_listings_cache=False), str(local_path(place).absolute())
    if _CHAINED.search(place):
        return fsspec.core.url_to_fs(place, use_listings_cache=False)
    kind = fsspec.get_filesystem_class(place[: place.index("://")])
    options = kind._get_kwargs_from_urls(place)
    return kind(**options, use_listings_cache=False), kind._strip_protocol(place)
