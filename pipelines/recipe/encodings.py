"""The encodings of text that a recipe may name."""

from __future__ import annotations

import codecs
import encodings.aliases

from pipelines.errors import InvalidKeyError, nearest

AUTO_ENCODING = "auto"
"""By the byte-order mark, else UTF-8 and, where a document is not valid UTF-8, Latin-1."""

_NOT_FOR_FILES = ("idna", "punycode", "undefined")


def known_encoding(name: str) -> str:
    """Returns Python's name of an encoding of text, or `auto`.

    Raises:
        InvalidKeyError: there is no such encoding; with the nearest spelling.
    """
    if name == AUTO_ENCODING:
        return name
    found = _text_codec(name)
    if found is None:
        known = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}
        spelt = [each.replace("_", "-") for each in sorted(known) if _text_codec(each)]
        suggestion = nearest(name.replace("_", "-"), [*spelt, AUTO_ENCODING])
        raise InvalidKeyError("", f"unknown encoding '{name}'; try utf-8, latin-1 or auto", suggestion)
    return found


def _text_codec(name: str) -> str | None:
    """Returns Python's name of an encoding that files of text may have, or None."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):  # ValueError: a null character
        return None
    return found.name if found._is_text_encoding and found.name not in _NOT_FOR_FILES else None
