"""The fsspec file system that a path or URL belongs to; nothing outside `system` needs it."""

from __future__ import annotations

import re

import fsspec

from pipelines.system.credentials import PROTOCOLS, check_credentials
from pipelines.system.locations import is_remote, local_path

_CHAINED = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]*://")


def filesystem(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the fsspec file system of a place, and the place as that file system spells it.

    Only slashes have a meaning in a path or a key: `#`, `%` and `::` are ordinary, unless a
    URL follows the colons (`zip://a.txt::s3://bucket/b.zip`).

    Raises:
        EspanError: the place is in S3, and there are no credentials.
    """
    if not is_remote(place):
        return fsspec.filesystem("file", use_listings_cache=False), str(local_path(place).absolute())
    if chained := _CHAINED.search(place):
        filesystem(place[chained.start() + len("::") :])  # refuses what cannot be opened
        return fsspec.core.url_to_fs(place, use_listings_cache=False)
    kind = fsspec.get_filesystem_class(place[: place.index("://")])
    options = kind._get_kwargs_from_urls(place)
    found = kind(**options, use_listings_cache=False)
    if place.startswith(PROTOCOLS):
        check_credentials(found, place)
    return found, kind._strip_protocol(place)
