"""Reads a corpus: cuts it into parts that workers take one at a time, and yields a part's documents in order.

A file that cannot be read to its end stops the work; a document that cannot be used becomes a `Reject`, and
the work goes on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import EspanError
from pipelines.needles import needle_document
from pipelines.prepare.sources import AUTO_ENCODING, COMPRESSIONS, NeedlesSource, PathSource, file_size

_BYTE_ORDER_MARK = "\ufeff"
_PARQUET_ROWS = 64  # read at a time; documents may be long


@dataclass(frozen=True)
class Part:
    """A stretch of one source: the unit of work, and of resuming.

    Attributes:
        source: ordinal of the source in the recipe.
        files: what to read, none for generated documents; more than one only for `.txt`.
        start: first byte of a `.jsonl` file, first row group of a Parquet file, first generated document.
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

    `record` is the line of a `.jsonl` file (from 1), the row of a Parquet file (from 0), and None for a
    `.txt` file.
    """

    file: str
    record: int | None
    reason: str


class UnusableError(ValueError):
    """Why a document cannot be used."""


def plan_parts(
    sources: Sequence[PathSource | NeedlesSource], target_bytes: int, documents: int = 256
) -> list[Part]:
    """Cuts `sources` into parts, in order, of about `target_bytes` of text or `documents` generated
    documents.

    The cuts never show in the result: parts are put together again in this order. Compressed files are not
    cut.
    """
    parts: list[Part] = []
    for ordinal, source in enumerate(sources):
        if isinstance(source, NeedlesSource):
            starts = range(0, source.documents, documents)
            parts += [Part(ordinal, (), at, min(at + documents, source.documents)) for at in starts]
        else:
            parts += _file_parts(ordinal, source, target_bytes)
    return parts


def read_part(source: PathSource | NeedlesSource, part: Part, seed: int) -> Iterator[Document | Reject]:
    """Yields the documents of `part` in order; `seed` is for generated ones.

    Raises:
        EspanError: a file is missing, corrupt or of another shape than its ending says.
    """
    if isinstance(source, NeedlesSource):
        for index in range(part.start, part.stop or 0):
            yield Document(needle_document(source.needles, seed=seed, index=index))
        return
    for file in part.files:
        try:
            if file.endswith(".txt"):
                yield _text_document(source, file)
            elif file.endswith(".parquet"):
                yield from _parquet_documents(source, file, part)
            else:
                yield from _json_documents(source, file, part)
        except (OSError, pa.ArrowException) as error:
            raise EspanError(
                f"{file}: cannot be read to its end: {error}; repair or remove the file"
            ) from error


def _file_parts(ordinal: int, source: PathSource, target_bytes: int) -> Iterator[Part]:
    group: list[str] = []
    group_bytes = 0
    for file in source.files():
        size = file_size(file)
        if not file.endswith(".txt") or group_bytes + size > target_bytes:
            if group:
                yield Part(ordinal, tuple(group))
            group, group_bytes = [], 0
        if file.endswith(".txt"):
            group.append(file)
            group_bytes += size
        elif file.endswith(".jsonl"):
            for start in range(0, size, target_bytes):
                yield Part(ordinal, (file,), start, min(start + target_bytes, size))
        elif file.endswith(".parquet"):
            yield from _row_group_parts(ordinal, file, target_bytes)
        else:
            yield Part(ordinal, (file,))
    if group:
        yield Part(ordinal, tuple(group))


def _row_group_parts(ordinal: int, file: str, target_bytes: int) -> Iterator[Part]:
    with _open(file) as stream:
        metadata = _parquet_file(stream, file).metadata
    start, gathered = 0, 0
    for group in range(metadata.num_row_groups):
        gathered += metadata.row_group(group).total_byte_size
        if gathered >= target_bytes or group == metadata.num_row_groups - 1:
            yield Part(ordinal, (file,), start, group + 1)
            start, gathered = group + 1, 0


def _open(file: str) -> BinaryIO:
    file_system, path = storage.filesystem(file)
    return file_system.open(path, "rb")


def _text_document(source: PathSource, file: str) -> Document | Reject:
    try:
        text, encoding = _decode(storage.read_bytes(file), source.encoding)
        return Document(_usable(text.replace("\r\n", "\n").replace("\r", "\n")), encoding)
    except UnusableError as reason:
        return Reject(file, None, str(reason))


def _json_documents(source: PathSource, file: str, part: Part) -> Iterator[Document | Reject]:
    lines_before: int | None = None
    for number, line in enumerate(_lines(file, part), start=1):
        if not line.strip():
            continue
        try:
            decoded, encoding = _decode(line, source.encoding)
            yield Document(_usable(_field(decoded, source.text)), encoding)
        except UnusableError as reason:
            if lines_before is None:
                lines_before = _count_lines_before(file, part.start)
            yield Reject(file, lines_before + number, str(reason))


def _lines(file: str, part: Part) -> Iterator[bytes]:
    """Yields the lines that begin in the part's range of bytes."""
    with _open(file) as stream:
        compression = next((COMPRESSIONS[ending] for ending in COMPRESSIONS if file.endswith(ending)), None)
        if compression:
            yield from io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), compression))
            return
        position = max(part.start - 1, 0)
        stream.seek(position)
        if part.start:
            position += len(stream.readline())
        while (part.stop is None or position < part.stop) and (line := stream.readline()):
            position += len(line)
            yield line


def _count_lines_before(file: str, start: int) -> int:
    """Returns how many lines begin before byte `start`; only a rejected line needs to know its number."""
    if start == 0:
        return 0
    lines, remaining = 1, start - 1
    with _open(file) as stream:
        while remaining and (block := stream.read(min(remaining, 8 << 20))):
            lines += block.count(b"\n")
            remaining -= len(block)
    return lines


def _parquet_documents(source: PathSource, file: str, part: Part) -> Iterator[Document | Reject]:
    with _open(file) as stream:
        parquet = _parquet_file(stream, file)
        if source.text not in parquet.schema_arrow.names:
            names = ", ".join(parquet.schema_arrow.names)
            raise EspanError(
                f"{file}: no column '{source.text}' (columns: {names}); set `text` to one of them"
            )
        groups = range(part.start, parquet.num_row_groups if part.stop is None else part.stop)
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
        for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=list(groups), columns=[source.text]):
            for value in _binary(batch.column(0)):
                try:
                    yield Document(_usable(_parquet_text(value, source.text)))
                except UnusableError as reason:
                    yield Reject(file, row, str(reason))
                row += 1


def _parquet_file(stream: BinaryIO, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowException as error:
        raise EspanError(f"{file}: not a Parquet file: {error}") from error


def _binary(column: pa.Array) -> Iterator[Any]:
    """Yields strings as bytes, so that invalid UTF-8 is met one document at a time; the rest as it is."""
    kind = column.type
    if pa.types.is_string(kind):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(kind):
        column = column.cast(pa.large_binary())
    return (value.as_py() for value in column)


def _parquet_text(value: Any, field: str) -> str:
    if isinstance(value, bytes):
        return _decode(value, "utf-8")[0]
    raise UnusableError(f"column '{field}' is {_json_kind(value)}, not text")


def _field(line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UnusableError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UnusableError(f"the line is {_json_kind(record)}, not a JSON object")
    if field not in record:
        raise UnusableError(f"no field '{field}' (fields: {', '.join(record) or 'none'})")
    if not isinstance(record[field], str):
        raise UnusableError(f"field '{field}' is {_json_kind(record[field])}, not text")
    return record[field]


def _json_kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _decode(content: bytes, encoding: str) -> tuple[str, str]:
    """Returns the text without byte-order mark, and the encoding that it was read with."""
    tried = "utf-8" if encoding == AUTO_ENCODING else encoding
    try:
        return content.decode(tried).removeprefix(_BYTE_ORDER_MARK), tried
    except UnicodeDecodeError as error:
        if encoding == AUTO_ENCODING:
            return content.decode("latin-1"), "latin-1"
        raise UnusableError(f"not valid {tried}: {error.reason} at byte {error.start}") from None


def _usable(text: str) -> str:
    if not text.strip():
        raise UnusableError("empty")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise UnusableError("not valid text: half of a surrogate pair") from None
    return text
