"""From a file's bytes to text: encodings, byte-order marks, line ends."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from pipelines.recipe.encodings import AUTO_ENCODING

LONGEST_DOCUMENT = 1 << 30
"""Bytes of a document, or of a line that holds one; what is longer is rejected, and never held in memory."""

TOO_LONG = f"longer than {LONGEST_DOCUMENT >> 20:,} MiB; cut it into several documents"

_LOOKED_AT = 4096  # bytes of a document, to guess at its encoding
_BYTE_ORDER_MARK = "\ufeff"
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class UnusableError(ValueError):
    """Why a document cannot be used."""


def exact_encoding(encoding: str, head: bytes) -> str:
    """Returns the encoding with its byte order, which a file's first bytes may say, or else `auto`.

    UTF-16 and UTF-32 without a mark are little-endian, as Python reads them on every machine this runs on.
    """
    if encoding in ("utf-16", "utf-32", AUTO_ENCODING):
        marked = next((exact for mark, exact in _MARKS if head.startswith(mark)), None)
        if marked is not None and (encoding == AUTO_ENCODING or marked.startswith(encoding)):
            return marked
        return encoding if encoding == AUTO_ENCODING else f"{encoding}-le"
    return "utf-8" if encoding == "utf-8-sig" else encoding


def decode(content: bytes, exact: str, asked: str) -> tuple[str, str]:
    """Returns the text without byte-order mark, and the name of the encoding that it was read with.

    Args:
        content: a document, or a line that holds one.
        exact: what `exact_encoding` made of `asked`.

    Raises:
        UnusableError: the bytes are not valid; it names the first that is not.
    """
    tried = "utf-8" if exact == AUTO_ENCODING else exact
    if tried == "utf-8" and _looks_like_utf_16(content):
        raise UnusableError(
            "it looks like UTF-16 without a byte-order mark: set encoding: utf-16-le (or utf-16-be)"
        )
    try:
        text = content.decode(tried).removeprefix(_BYTE_ORDER_MARK)
        return text, tried if asked == AUTO_ENCODING else asked
    except UnicodeDecodeError as error:
        if exact == AUTO_ENCODING:
            return content.decode("latin-1"), "latin-1"
        marked = next((name for mark, name in _MARKS if content.startswith(mark)), "")
        hint = f"; it begins as {marked[:6].upper()} does: set encoding: {marked[:6]}" if marked else ""
        raise UnusableError(f"not valid {asked}: {error.reason} at byte {error.start}{hint}") from None
    except UnicodeError as error:
        raise UnusableError(f"not valid {asked}: {error}") from None


def _looks_like_utf_16(content: bytes) -> bool:
    """Says whether every other byte is null, as in UTF-16 of Latin script, which is valid UTF-8 as well."""
    head = content[:_LOOKED_AT]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # a mark gives a better hint
        return False
    even, odd = sorted((head[::2].count(0), head[1::2].count(0)))
    return odd > len(head) / 4 and even <= odd / 8


def usable(text: str) -> str:
    """Returns `text`, if a tokenizer can take it.

    Raises:
        UnusableError: it is empty, or not Unicode.
    """
    if not text.strip():
        raise UnusableError("empty")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise UnusableError("not valid text: half of a surrogate pair") from None
    return text


def joined(blocks: Iterable[bytes]) -> bytes:
    """Returns the blocks as one.

    Raises:
        UnusableError: they are more than `LONGEST_DOCUMENT` bytes.
    """
    pieces, held = [], 0
    for block in blocks:
        held += len(block)
        if held > LONGEST_DOCUMENT:
            raise UnusableError(TOO_LONG)
        pieces.append(block)
    return b"".join(pieces)


def line_end(exact: str, character: str = "\n") -> bytes:
    """Returns a line end as the encoding has it; in UTF-16 and UTF-32 it takes more than one byte."""
    return character.encode("utf-8" if exact == AUTO_ENCODING else exact)


def cut_lines(blocks: Iterable[bytes], end: bytes) -> Iterator[tuple[bytes | None, int]]:
    """Yields each line with its line end, and its length in bytes; of one that is too long, only the length.

    `end` counts only where a multiple of its own length lies before it: the bytes of two characters in UTF-16
    may look like a line end.
    """
    line = _Line()
    for block in _aligned(blocks, len(end)):
        start = 0
        while (stop := _find(block, end, start)) > 0:
            line.add(block[start:stop])
            yield line.take()
            start = stop
        line.add(block[start:])
    if line.length:
        yield line.take()


class _Line:
    """A line, collected block by block."""

    def __init__(self) -> None:
        self.length = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self.length += len(piece)
        if self.length <= LONGEST_DOCUMENT:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> tuple[bytes | None, int]:
        found = b"".join(self._pieces) if self.length <= LONGEST_DOCUMENT else None
        length, self.length = self.length, 0
        self._pieces.clear()
        return found, length


def _find(block: bytes, end: bytes, start: int) -> int:
    """Returns where the first line end from `start` on stops, or -1."""
    at = block.find(end, start)
    while at >= 0 and at % len(end):
        at = block.find(end, at + 1)
    return -1 if at < 0 else at + len(end)


def _aligned(blocks: Iterable[bytes], width: int) -> Iterator[bytes]:
    """Yields the same bytes in blocks that are multiples of `width`, but for what is left at the end."""
    rest = b""
    for block in blocks:
        block = rest + block if rest else block
        whole = len(block) - len(block) % width
        rest = block[whole:]
        yield block[:whole]
    if rest:
        yield rest
