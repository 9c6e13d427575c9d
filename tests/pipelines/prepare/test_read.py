"""A corpus reads the same however it is cut into parts, and a bad document is named and left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.prepare.read import Document, Reject, plan_parts, read_part
from pipelines.prepare.sources import files_of
from pipelines.recipe.keys.needles import NeedleDocuments
from pipelines.recipe.keys.prepare import NeedlesSource, PathSource, RulerSource
from pipelines.recipe.keys.ruler import RulerDocuments
from tests.pipelines.prepare.reading import TOKENIZER, read, reasons, texts


@pytest.fixture
def lines() -> list[str]:
    return [
        json.dumps({"text": f"document {number} " + "é" * (number % 7), "n": number}) for number in range(40)
    ]


@pytest.mark.parametrize("target_bytes", [1, 7, 31, 32, 100, 1 << 20])
def test_json_lines_read_the_same_wherever_they_are_cut(
    tmp_path: Path, lines: list[str], target_bytes: int
) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(lines))  # no line end after the last
    found = texts(read(PathSource(path=str(file)), target_bytes))
    assert found == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("target_bytes", [10, 50, 1 << 20])
def test_a_rejected_line_is_named_by_its_number_in_the_whole_file(tmp_path: Path, target_bytes: int) -> None:
    content = b"\n".join(
        [
            b'{"text": "good"}',
            b'{"text": "bad \xff"}',
            b"",
            b"not json",
            b'{"other": 1}',
            b'{"text": 5}',
            b'{"text": "  "}',
            b"[1]",
            b'{"text": "half \\ud800"}',
            b'{"text": "last"}\n',
        ]
    )
    (tmp_path / "corpus.jsonl").write_bytes(content)
    items = read(PathSource(path=str(tmp_path)), target_bytes)
    assert texts(items) == ["good", "last"]
    found = reasons(items)
    assert [record for record, _ in found] == [2, 4, 5, 6, 7, 8, 9]
    expected = [
        "not valid utf-8",
        "not valid JSON",
        "no field 'text' (fields: other)",
        "of type int",
        "empty",
    ]
    for (_, reason), part in zip(found, [*expected, "of type list", "surrogate"], strict=True):
        assert part in reason


def test_compressed_lines_read_like_plain_ones_also_from_several_frames(
    tmp_path: Path, lines: list[str]
) -> None:
    halves = ["\n".join(half).encode() + b"\n" for half in (lines[:20], lines[20:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(half) for half in halves))
    (tmp_path / "b.jsonl.gz").write_bytes(b"".join(gzip.compress(half) for half in halves))
    expected = [json.loads(line)["text"] for line in lines]
    assert texts(read(PathSource(path=str(tmp_path)))) == expected * 2


def test_a_file_cut_short_stops_the_work_and_is_named(tmp_path: Path, lines: list[str]) -> None:
    content = zstandard.compress("\n".join(lines).encode())
    (tmp_path / "short.jsonl.zst").write_bytes(content[: len(content) // 2])
    with pytest.raises(EspanError, match=r"short\.jsonl\.zst: cannot be read to its end"):
        read(PathSource(path=str(tmp_path)))


@pytest.mark.parametrize("target_bytes", [1, 1 << 20])
def test_parquet_rows_are_read_one_by_one_and_bad_ones_named(tmp_path: Path, target_bytes: int) -> None:
    values = [b"first", b"bad \xff", None, b"", "naïve".encode(), b"last"]
    column = pa.array(values, pa.binary()).view(pa.string())  # as careless writers store it
    pq.write_table(pa.table({"content": column, "id": range(6)}), tmp_path / "c.parquet", row_group_size=2)
    items = read(PathSource(path=str(tmp_path), text="content"), target_bytes)
    assert texts(items) == ["first", "naïve", "last"]
    assert [record for record, _ in reasons(items)] == [1, 2, 3]
    assert len(plan_parts([PathSource(path=str(tmp_path))], 1)) == 3


def test_a_parquet_file_without_the_column_stops_the_work(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(EspanError, match=r"no column 'text' \(columns: content\); set `text`"):
        read(PathSource(path=str(tmp_path)))


def test_text_files_lose_byte_order_marks_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(read(PathSource(path=str(tmp_path)))) == ["one\ntwo\nthree\n"]


def test_encodings_are_as_asked_or_found_and_reported(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "utf.txt").write_bytes("déjà".encode())

    def found(encoding: str) -> list[Document | Reject]:
        return read(PathSource(path=str(tmp_path), encoding=encoding))

    assert found("auto") == [Document("déjà", "latin-1"), Document("déjà", "utf-8")]
    assert found("latin-1")[0] == Document("déjà", "iso8859-1")
    rejected, usable = found("utf-8")
    assert isinstance(rejected, Reject)
    assert rejected.file == str(tmp_path / "latin.txt")
    assert "not valid utf-8: invalid continuation byte at byte 1" in rejected.reason
    assert usable == Document("déjà", "utf-8")


def test_small_text_files_share_a_part_and_large_ones_do_not(tmp_path: Path) -> None:
    for number, size in enumerate([10, 10, 10, 500, 10]):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    parts = plan_parts([PathSource(path=str(tmp_path))], 30)
    assert [[Path(file).stem for file in part.files] for part in parts] == [["0", "1", "2"], ["3"], ["4"]]


def test_files_of_unknown_ending_are_passed_over_in_folders_and_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "notes.md").write_text("notes")
    assert files_of(PathSource(path=str(tmp_path))) == [str(tmp_path / "a.txt")]
    with pytest.raises(InvalidKeyError, match=r"known ending \(\.txt, "):
        files_of(PathSource(path=str(tmp_path / "notes.md")))
    with pytest.raises(InvalidKeyError, match="no file matches"):
        files_of(PathSource(path=str(tmp_path / "*.jsonl")))


@pytest.mark.parametrize(
    "source",
    [
        NeedlesSource(needles=NeedleDocuments(tokens=128, needles=2, questions=1), documents=7),
        RulerSource(ruler=RulerDocuments(tokens=300, tasks=("niah_single_1", "fwe")), documents=7),
    ],
    ids=["needles", "ruler"],
)
def test_generated_documents_are_those_of_their_seed_whatever_the_parts(
    source: NeedlesSource | RulerSource,
) -> None:
    found = texts(read(source))
    (whole,) = plan_parts([source], 1, documents=100)
    assert found == texts(list(read_part(source, whole, 1, TOKENIZER)))
    assert len(set(found)) == 7
    assert found != texts(list(read_part(source, whole, 2, TOKENIZER)))


def test_a_generated_document_that_cannot_be_so_short_is_rejected_with_its_index() -> None:
    source = RulerSource(ruler=RulerDocuments(tokens=128, tasks=("niah_single_1", "vt")), documents=5)
    found = read(source)
    assert len(texts(found)) == 3
    assert [index for index, _ in reasons(found)] == [1, 3]
    assert all("RULER's vt" in reason and "ask for as many or more" in reason for _, reason in reasons(found))
