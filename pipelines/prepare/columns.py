"""Documents in a column of a Parquet file: every Arrow type that holds text, as bytes, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import EspanError

_HOLDS_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_HOLDS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def check_column(schema: pa.Schema, name: str, file: str) -> None:
    """Refuses a file without a column of that name, or with one that holds no text.

    Raises:
        EspanError: names file, column and type.
    """
    there = schema.names.count(name)
    if not there:
        names = ", ".join(schema.names)
        raise EspanError(f"{file}: no column '{name}' (columns: {names}); set `text` to one of them")
    if there > 1:
        raise EspanError(f"{file}: {there} columns are called '{name}'; rename all but one")
    if not _holds_text(kind := schema.field(name).type):
        raise EspanError(f"{file}: column '{name}' is of type {kind}, not text; set `text` to another column")


def contents(column: pa.Array) -> Iterator[bytes | None]:
    """Yields what each row of a column that holds text has, as bytes; None for null.

    Bytes, because not every writer checks its UTF-8; invalid text then shows up one document at a time.
    """
    column = _plain(column)
    if pa.types.is_null(column.type):
        return (None for _ in range(len(column)))
    return (value.as_py() for value in _as_bytes(column))


def _holds_text(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    return pa.types.is_null(kind) or any(holds(kind) for holds in (*_HOLDS_TEXT, *_HOLDS_BYTES))


def _plain(column: pa.Array) -> pa.Array:
    """Strips whatever wraps the text (extension types, dictionaries, runs), in any order."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def _as_bytes(column: pa.Array) -> pa.Array:
    if any(holds(column.type) for holds in _HOLDS_BYTES):
        return column
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string()).cast(pa.large_binary())
    return column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
