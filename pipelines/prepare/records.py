"""Documents in JSON: in a field of an object, which is a line, an element of an array or the whole file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.prepare.text import LONGEST_DOCUMENT, UnusableError
from pipelines.recipe.encodings import AUTO_ENCODING

_SHOWN = 200  # characters of a list of fields
_BLANK = "\ufeff\xef\xbb\xbf \t\r\n"  # a byte-order mark may also come as Latin-1
_IN_TEXT = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\],]')


def field_of(record_text: str, field: str) -> str:
    """Returns the text in `field` of a JSON object.

    Raises:
        UnusableError: it is not JSON, nested too deeply, or has no such field or no text in it.
    """
    try:
        # Numbers are not parsed: one of more than 4,300 digits is fine in another field.
        record = json.loads(record_text, parse_int=_some_number)
    except RecursionError:
        raise UnusableError("nested too deeply to be read") from None
    except ValueError as error:
        raise UnusableError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UnusableError(f"the record is {kind(record)}, not a JSON object")
    if field not in record:
        names = ", ".join(record) or "none"
        names = names if len(names) <= _SHOWN else f"{names[:_SHOWN]}..."
        raise UnusableError(f"no field '{field}' (fields: {names})")
    if not isinstance(record[field], str):
        raise UnusableError(f"field '{field}' is {kind(record[field])}, not text")
    return record[field]


def kind(value: Any) -> str:
    """Describes the type of a value that should have been text."""
    return "null" if value is None else f"of type {type(value).__name__}"


def holds_lines(head: str) -> bool:
    """Says whether a `.json` file that begins with `head` has an object on each line, as many corpora do."""
    begins = head.lstrip(_BLANK)
    if begins.startswith("["):
        return False
    first, end, _ = begins.partition("\n")
    return not end or not begins.startswith("{") or first.rstrip().endswith("}")


def is_read_bytewise(exact: str) -> bool:
    """Says whether quotes and brackets are the same bytes as in ASCII, and no byte of another character."""
    if exact == AUTO_ENCODING:
        return True
    every = bytes(range(256)).decode(exact, "replace")
    return len(every) == 256 and every[:128] == bytes(range(128)).decode("ascii")


def decoded(blocks: Iterable[bytes], exact: str) -> Iterator[str]:
    """Yields the text of all blocks.

    Raises:
        UnicodeDecodeError: they are not valid; its `start` counts from the first block's beginning.
    """
    decoder = codecs.getincrementaldecoder(exact)()
    before = 0
    for block in blocks:
        waiting = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block)
        except UnicodeDecodeError as error:
            error.start += before - waiting
            raise
        before += len(block)
    yield decoder.decode(b"", final=True)


def values(texts: Iterable[str]) -> Iterator[str | None]:
    """Yields the JSON text of each element of the arrays in a file, and of each object outside of one.

    `texts` is the file in arbitrary pieces. Nothing is parsed here: an error in one element leaves
    the others alone, and depth costs nothing. None stands for an element that is too long.

    Raises:
        EOFError: an array is not closed.
    """
    value = _Value()
    depth, in_array, in_text, escaped = 0, False, False, False
    for text in texts:
        start = at = 0
        if escaped and text:
            at, escaped = 1, False
        while found := (_IN_TEXT if in_text else _OUTSIDE).search(text, at):
            sign, at = found[0], found.end()
            if in_text:
                in_text = sign != '"'
                if sign == "\\":
                    escaped = at == len(text)
                    at += 1
            elif sign == '"':
                in_text = True
            elif sign == "[" and not depth:
                value.add(text[start : at - 1])
                yield from value.take()
                start = at
                depth, in_array = 1, True
            elif sign in "[{":
                depth += 1
            else:
                depth -= sign in "]}"
                closes_array = in_array and depth == 0
                if depth > in_array or (sign == "," and depth != in_array):
                    continue
                ends_inside = sign in "]}" and not closes_array
                value.add(text[start : at if ends_inside else at - 1])
                yield from value.take()
                start = at
                depth, in_array = max(depth, 0), in_array and not closes_array
        value.add(text[start:])
    yield from value.take()
    if in_array:
        raise EOFError("the JSON array in it is not closed")


class _Value:
    """An element's text, gathered piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def add(self, piece: str) -> None:
        self._length += len(piece)
        if self._length <= LONGEST_DOCUMENT:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> Iterator[str | None]:
        if self._length > LONGEST_DOCUMENT:
            yield None
        elif text := "".join(self._pieces).strip(_BLANK):
            yield text
        self._pieces.clear()
        self._length = 0


def _some_number(digits: str) -> int:
    return 0
