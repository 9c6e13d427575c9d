"""Every type of Arrow's that holds text is text; every other is refused by file, column and type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import EspanError
from pipelines.prepare.columns import contents
from pipelines.recipe.keys.prepare import PathSource
from tests.pipelines.prepare.reading import read, reasons, texts

VALUES = ["first", "naïve", None, "first", "", "last"]
BYTES = [None if value is None else value.encode() for value in VALUES]

COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "string": lambda: pa.array(VALUES, pa.string()),
    "large string": lambda: pa.array(VALUES, pa.large_string()),
    "string view": lambda: pa.array(VALUES, pa.string_view()),
    "binary": lambda: pa.array(BYTES, pa.binary()),
    "large binary": lambda: pa.array(BYTES, pa.large_binary()),
    "binary view": lambda: pa.array(BYTES, pa.binary_view()),
    "dictionary": lambda: pa.array(VALUES, pa.string()).dictionary_encode(),
    "dictionary of large": lambda: pa.array(VALUES, pa.large_string()).dictionary_encode(),
    "dictionary of binary": lambda: pa.array(BYTES, pa.binary()).dictionary_encode(),
    "extension": lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(VALUES)),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_text_is_read_whatever_its_type(tmp_path: Path, kind: str) -> None:
    table = pa.table({"id": range(6), "content": COLUMNS[kind]()})
    pq.write_table(table, tmp_path / "a.Parquet", row_group_size=4)
    items = read(PathSource(path=str(tmp_path), text="content"), target_bytes=1)
    assert texts(items) == ["first", "naïve", "first", "last"]
    assert reasons(items) == [(2, "column 'content' is null, not text"), (4, "empty")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_bytes_that_are_not_utf_8_are_rejected_one_by_one(tmp_path: Path, kind: pa.DataType) -> None:
    raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    column = pa.array([b"good", b"bad \xff", b"fine"], raw[kind]).view(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    items = read(PathSource(path=str(tmp_path)))
    assert texts(items) == ["good", "fine"]
    assert reasons(items) == [(1, "not valid utf-8: invalid start byte at byte 4")]


def test_runs_of_text_are_text() -> None:
    column = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None]))
    assert list(contents(column)) == [b"a", b"a", None]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([["a"], ["b"]]), "list"),
        (pa.array([{"a": "b"}]), "struct"),
        (pa.array([True]), "bool"),
    ],
)
def test_a_column_of_another_type_is_refused_by_that_type(
    tmp_path: Path, column: pa.Array, kind: str
) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(EspanError, match=rf"a\.parquet: column 'text' is of type {kind}.*, not text; set"):
        read(PathSource(path=str(tmp_path)))


def test_a_column_whose_name_has_a_dot_is_not_the_field_of_another(tmp_path: Path) -> None:
    columns = {"a": [{"b": "inner"}], "a.b": ["outer"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert texts(read(PathSource(path=str(tmp_path), text="a.b"))) == ["outer"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(EspanError, match=r"a\.parquet: 2 columns are called 'text'"):
        read(PathSource(path=str(tmp_path)))
