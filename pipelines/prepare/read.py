"""Reads a corpus: cuts it into parts that workers take one at a time, and yields a part's documents in order.

A file that cannot be read to its end stops the work; a document that cannot be used becomes a `Reject`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipelines.errors import EspanError, one_line
from pipelines.prepare import decompress, records
from pipelines.prepare.columns import check_column, contents
from pipelines.prepare.formats import kind_of
from pipelines.prepare.generated import generator
from pipelines.prepare.sources import files_of, label_of
from pipelines.prepare.text import (
    TOO_LONG,
    UnusableError,
    cut_lines,
    decode,
    exact_encoding,
    joined,
    line_end,
    usable,
)
from pipelines.recipe.encodings import AUTO_ENCODING
from pipelines.recipe.keys.prepare import AnySource, PathSource
from pipelines.system.storage import file_size
from pipelines.system.streams import open_binary

_PARQUET_ROWS = 64  # read at a time; documents may be long
_BLOCK = 1 << 20
_HEAD_BYTES = 1 << 16  # of a `.json` file, to see how it is laid out
_WIDEST_CHARACTER = 4  # bytes; parts begin at multiples of it, so that none begins within a UTF-16 line end


@dataclass(frozen=True)
class CorpusPart:
    """A stretch of one source: the unit of work, and of resuming.

    Attributes:
        source: ordinal of the source in the recipe.
        files: what to read, none for generated documents; more than one only for text files.
        start: first byte of JSON lines, first row group of a Parquet file, first generated document.
        stop: where the next part starts; None: at the end of the files.
    """

    source: int
    files: tuple[str, ...]
    start: int = 0
    stop: int | None = None


class Document(NamedTuple):
    """A document's text, and the encoding it was read with (None where the format fixes it)."""

    text: str
    encoding: str | None = None


class Reject(NamedTuple):
    """A document that cannot be used.

    `record` is the line of JSON lines (from 1), the element of a JSON array, the row of a Parquet file or the
    index of a generated document (from 0), None for a text file; `file` names the source of generated ones.
    """

    file: str
    record: int | None
    reason: str


def plan_parts(sources: Sequence[AnySource], target_bytes: int, documents: int = 256) -> list[CorpusPart]:
    """Cuts `sources` into parts, in order, of about `target_bytes` of text or so many generated `documents`.

    The cuts never show in the result: parts are put together again in this order. Compressed files are not
    cut, nor are `.json` files.
    """
    parts: list[CorpusPart] = []
    for ordinal, source in enumerate(sources):
        if isinstance(source, PathSource):
            parts += _file_parts(ordinal, source, target_bytes)
        else:
            starts = range(0, source.documents, documents)
            parts += [CorpusPart(ordinal, (), at, min(at + documents, source.documents)) for at in starts]
    return parts


def read_part(
    source: AnySource, part: CorpusPart, seed: int, tokenizer: Tokenizer
) -> Iterator[Document | Reject]:
    """Yields the documents of `part` in order; `seed` is for generated ones, `tokenizer` measures them.

    Raises:
        EspanError: a file is missing, corrupt, or not in the format that its ending says.
    """
    if not isinstance(source, PathSource):
        text = generator(source, seed, tokenizer)
        for index in range(part.start, part.stop or 0):
            yield _document_or_reject(lambda: Document(text(index)), label_of(source), index)  # noqa: B023
        return
    for file in part.files:
        try:
            yield from _READERS[kind_of(file) or "text"](source, file, part)
        except (*decompress.ERRORS, pa.ArrowException, MemoryError) as error:
            what = f"cannot be read to its end: {_reason(error)}; repair or remove the file"
            raise EspanError(f"{file}: {what}") from error


def _file_parts(ordinal: int, source: PathSource, target_bytes: int) -> Iterator[CorpusPart]:
    target_bytes = -(-target_bytes // _WIDEST_CHARACTER) * _WIDEST_CHARACTER
    group: list[str] = []
    group_bytes = 0
    for file in files_of(source):
        size, kind = file_size(file), kind_of(file)
        if kind != "text" or group_bytes + size > target_bytes:
            if group:
                yield CorpusPart(ordinal, tuple(group))
            group, group_bytes = [], 0
        if kind == "text":
            group.append(file)
            group_bytes += size
        elif kind == "parquet":
            yield from _row_group_parts(ordinal, file, target_bytes)
        elif kind == "lines" and size > target_bytes and not _is_compressed(file):
            for start in range(0, size, target_bytes):
                yield CorpusPart(ordinal, (file,), start, min(start + target_bytes, size))
        elif size:
            yield CorpusPart(ordinal, (file,))
    if group:
        yield CorpusPart(ordinal, tuple(group))


def _is_compressed(file: str) -> bool:
    with open_binary(file) as stream:
        return decompress.is_compressed(stream.read(decompress.HEAD_BYTES))


def _row_group_parts(ordinal: int, file: str, target_bytes: int) -> Iterator[CorpusPart]:
    with open_binary(file) as stream:
        metadata = _parquet_file(stream, file).metadata
    start, gathered = 0, 0
    for group in range(metadata.num_row_groups):
        gathered += metadata.row_group(group).total_byte_size
        if gathered >= target_bytes or group == metadata.num_row_groups - 1:
            yield CorpusPart(ordinal, (file,), start, group + 1)
            start, gathered = group + 1, 0


def _text_document(source: PathSource, file: str, part: CorpusPart) -> Iterator[Document | Reject]:
    def document() -> Document:
        with open_binary(file) as stream:
            content = joined(decompress.blocks(stream))
        exact = exact_encoding(source.encoding, content)
        text, encoding = decode(content, exact, source.encoding)
        return Document(usable(text.replace("\r\n", "\n").replace("\r", "\n")), encoding)

    yield _document_or_reject(document, file, None)


def _document_or_reject(document: Callable[[], Document], file: str, record: int | None) -> Document | Reject:
    try:
        return document()
    except UnusableError as reason:
        return Reject(file, record, str(reason))
    except MemoryError:
        return Reject(file, record, "too large for the memory of this machine; cut it into several documents")


def _line_documents(source: PathSource, file: str, part: CorpusPart) -> Iterator[Document | Reject]:
    lines_before: int | None = None
    for number, (line, exact) in enumerate(_lines(source, file, part), start=1):
        if line is not None and not line.strip(b"".join(line_end(exact, each) for each in " \t\r\n")):
            continue
        found = _document_or_reject(lambda: _json_document(source, line, exact), file, number)  # noqa: B023
        if isinstance(found, Reject):
            if lines_before is None:  # only a rejected line needs its number
                before = CorpusPart(part.source, part.files, 0, part.start)
                lines_before = sum(1 for _ in _lines(source, file, before)) if part.start else 0
            found = found._replace(record=lines_before + number)
        yield found


def _json_document(source: PathSource, record: bytes | None, exact: str) -> Document:
    if record is None:
        raise UnusableError(TOO_LONG)
    text, encoding = decode(record, exact, source.encoding)
    return Document(usable(records.field_of(text, source.text)), encoding)


def _lines(source: PathSource, file: str, part: CorpusPart) -> Iterator[tuple[bytes | None, str]]:
    """Yields the lines that begin in the part's range of bytes, and the encoding; None for one too long."""
    with open_binary(file) as stream:
        head = stream.read(decompress.HEAD_BYTES)
        if decompress.is_compressed(head):
            blocks = decompress.blocks(stream)
            head = next(blocks, b"")
            exact = exact_encoding(source.encoding, head)
            numbered = _split_lines(chain([head], blocks), exact)
            yield from ((line, exact) for _, line in numbered)
            return
        exact = exact_encoding(source.encoding, head)
        begin = max(part.start - len(line_end(exact)), 0)
        for position, line in _split_lines(_blocks_from(stream, begin), exact):
            if part.stop is not None and begin + position >= part.stop:
                return
            if begin + position >= part.start:  # else it is the end of a line of the part before
                yield line, exact


def _split_lines(blocks: Iterable[bytes], exact: str) -> Iterator[tuple[int, bytes | None]]:
    """Yields where each line begins, and the line: Windows' and old Macs' line ends count as well."""
    end, carriage_return = line_end(exact), line_end(exact, "\r")
    position = 0
    for line, length in cut_lines(blocks, end):
        if line is None or carriage_return not in line:
            yield position, line
        else:
            inner = line.removesuffix(end).removesuffix(carriage_return)
            yield from ((position, piece) for piece, _ in cut_lines([inner or end], carriage_return))
        position += length


def _blocks_from(stream: BinaryIO, position: int) -> Iterator[bytes]:
    stream.seek(position)
    return iter(lambda: stream.read(_BLOCK), b"")


def _json_documents(source: PathSource, file: str, part: CorpusPart) -> Iterator[Document | Reject]:
    with open_binary(file) as stream:
        head = bytearray()
        for block in decompress.blocks(stream):
            head += block
            if len(head) >= _HEAD_BYTES:
                break
        exact = exact_encoding(source.encoding, bytes(head))
        if not records.holds_lines(head.decode("utf-8" if exact == AUTO_ENCODING else exact, "replace")):
            yield from _element_documents(source, file, decompress.blocks(stream), exact)
            return
    yield from _line_documents(source, file, part)


def _element_documents(
    source: PathSource, file: str, blocks: Iterator[bytes], exact: str
) -> Iterator[Document | Reject]:
    bytewise = records.is_read_bytewise(exact)
    # Latin-1 stands for bytes: an element that is not valid is then met alone, as a line would be.
    texts = (block.decode("latin-1") for block in blocks) if bytewise else records.decoded(blocks, exact)
    number = 0
    try:
        for number, text in enumerate(records.values(texts), start=1):
            record = None if text is None else text.encode("latin-1" if bytewise else exact, "surrogatepass")
            yield _document_or_reject(lambda: _json_document(source, record, exact), file, number - 1)  # noqa: B023
    except UnicodeDecodeError as error:
        what = f"not valid {source.encoding}: {error.reason} at byte {error.start} of the file"
        yield Reject(file, number, f"{what}; the rest of the file is not read")


def _parquet_documents(source: PathSource, file: str, part: CorpusPart) -> Iterator[Document | Reject]:
    with open_binary(file) as stream:
        parquet = _parquet_file(stream, file)
        check_column(parquet.schema_arrow, source.text, file)
        groups = range(part.start, parquet.num_row_groups if part.stop is None else part.stop)
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
        for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=list(groups), columns=[source.text]):
            for value in contents(batch.column(batch.schema.get_field_index(source.text))):
                yield _document_or_reject(lambda: _cell(value, source.text), file, row)  # noqa: B023
                row += 1


def _cell(value: bytes | None, column: str) -> Document:
    if value is None:
        raise UnusableError(f"column '{column}' is null, not text")
    return Document(usable(decode(value, "utf-8", "utf-8")[0]))


def _parquet_file(stream: BinaryIO, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowException as error:
        raise EspanError(f"{file}: not a Parquet file ({_reason(error)}); repair or remove it") from error


def _reason(error: Exception) -> str:
    return one_line(error).rstrip(".") or type(error).__name__


_READERS = {
    "text": _text_document,
    "lines": _line_documents,
    "json": _json_documents,
    "parquet": _parquet_documents,
}
