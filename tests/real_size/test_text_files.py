"""Text in any encoding, JSON in any layout, any compression: read in bounded memory, or rejected.

Longer than most: one table after the other of what files hold, each with its test.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipelines.context import CheckContext
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.prepare import decompress, records, text
from pipelines.prepare.check import check, plan
from pipelines.prepare.read import Reject
from pipelines.recipe.encodings import known_encoding
from pipelines.recipe.keys.prepare import PathSource, PrepareKeys
from tests.pipelines.prepare.reading import read, reasons, texts

DOCUMENTS = [
    "one",
    "naïve Größe",
    "ਊ ഊ",
    "",
    "five \u2028 six \x85",
    "last",
]  # U+0A0A: two line feeds in UTF-16
GOOD = [document for document in DOCUMENTS if document]
WESTERN = ["one", "naïve Größe", "last"]

MARKED = ["utf-16", "utf-32", "utf-8-sig"]
UNICODE = [*MARKED, "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8", "gb18030"]
REGIONAL = {
    "latin-1": WESTERN,
    "cp1252": WESTERN,
    "cp037": WESTERN,  # of IBM mainframes: its line feed is not ASCII's
    "shift_jis": ["表の能力", "ソース", "plain"],  # whose second bytes look like backslashes
    "iso2022_jp": ["表の能力", "plain"],
    "utf-7": GOOD,
}
ENCODED = {**dict.fromkeys(UNICODE, GOOD), **REGIONAL}


def lines(documents: list[str], end: str = "\n") -> str:
    return "".join(json.dumps({"text": each}, ensure_ascii=False) + end for each in documents)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODED)
def test_lines_are_read_in_any_encoding_wherever_they_are_cut(
    tmp_path: Path, encoding: str, end: str
) -> None:
    documents = ENCODED[encoding]
    content = (lines(documents[:1], end) + end + " " + end + lines(documents[1:], end)).encode(encoding)
    (tmp_path / "a.jsonl").write_bytes(content)
    for target_bytes in (3, 14, 1 << 20):
        items = read(PathSource(path=str(tmp_path), encoding=encoding), target_bytes)
        assert texts(items) == documents
        assert not reasons(items)


@pytest.mark.parametrize("layout", ["lines", "array", "indented", "object"])
@pytest.mark.parametrize("encoding", ENCODED)
def test_json_files_are_read_in_any_layout_and_encoding(tmp_path: Path, encoding: str, layout: str) -> None:
    documents = ENCODED[encoding]
    objects = [{"text": each, "meta": {"tags": ["]", "}", '\\"']}} for each in documents]
    written = {
        "lines": lines(documents),
        "array": json.dumps(objects, ensure_ascii=False),
        "indented": json.dumps(objects, indent=2, ensure_ascii=False),
        "object": json.dumps(objects[-1], indent=2, ensure_ascii=False),
    }
    (tmp_path / "a.json").write_bytes(written[layout].encode(encoding))
    items = read(PathSource(path=str(tmp_path), encoding=encoding))
    assert texts(items) == (documents[-1:] if layout == "object" else documents)


@pytest.mark.parametrize("encoding", ENCODED)
def test_text_files_are_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    content = "\r\n".join(ENCODED[encoding])
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    assert texts(read(PathSource(path=str(tmp_path), encoding=encoding))) == [content.replace("\r\n", "\n")]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF8, "utf-8"),
    ],
)
def test_a_byte_order_mark_says_which_encoding_is_meant(tmp_path: Path, mark: bytes, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(mark + lines(GOOD).encode(encoding))
    (tmp_path / "b.txt").write_bytes(mark + GOOD[1].encode(encoding))
    items = read(PathSource(path=str(tmp_path), encoding="auto"), target_bytes=7)
    assert texts(items) == [*GOOD, GOOD[1]]
    named = {item.encoding for item in items if not isinstance(item, Reject)}
    assert named == {encoding}
    if encoding != "utf-8":
        rejected = reasons(read(PathSource(path=str(tmp_path / "b.txt"))))
        assert f"set encoding: {encoding[:6]}" in rejected[0][1]


@pytest.mark.parametrize("target_bytes", [10, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-8", "utf-32-be"])
def test_one_line_that_cannot_be_decoded_leaves_the_others(
    tmp_path: Path, encoding: str, target_bytes: int
) -> None:
    bad = {"utf-8": b"\xff", "utf-16-le": b"\x00\xd8\x20\x00", "utf-32-be": b"\x00\x11\x00\x00"}[encoding]
    end = "\n".encode(encoding)
    content = [lines(["a"]).encode(encoding)[: -len(end)], bad, lines(["c"]).encode(encoding)]
    (tmp_path / "a.jsonl").write_bytes(end.join(content))
    items = read(PathSource(path=str(tmp_path), encoding=encoding), target_bytes)
    assert texts(items) == ["a", "c"]
    ((record, reason),) = reasons(items)
    assert record == 2
    assert reason.startswith(f"not valid {encoding}: ")
    assert reason.endswith("at byte 0")


@pytest.mark.parametrize("encoding", ["utf-8", "auto"])
@pytest.mark.parametrize("wide", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_without_a_mark_is_rejected_by_name_and_not_read_as_null_characters(
    tmp_path: Path, name: str, wide: str, encoding: str
) -> None:
    (tmp_path / name).write_bytes('{"text": "plain text"}'.encode(wide))
    [reject] = read(PathSource(path=str(tmp_path / name), encoding=encoding))
    assert isinstance(reject, Reject)
    assert "set encoding: utf-16-le" in reject.reason


def test_what_cannot_be_decoded_in_an_array_is_named_by_its_byte(tmp_path: Path) -> None:
    content = json.dumps([{"text": "a"}, {"text": "b"}], indent=1).encode("utf-16-le")
    at = content.index("b".encode("utf-16-le"))
    (tmp_path / "a.json").write_bytes(content[:at] + b"\x00\xdc" + content[at + 2 :])
    items = read(PathSource(path=str(tmp_path), encoding="utf-16-le"))
    assert texts(items) == []
    assert f"at byte {at} of the file" in reasons(items)[-1][1]
    (tmp_path / "a.json").write_bytes(b'[{"text": "a"}, {"text": "\xff"}, {"text": "c"}]')
    items = read(PathSource(path=str(tmp_path)))
    assert texts(items) == ["a", "c"]
    assert reasons(items) == [(1, "not valid utf-8: invalid start byte at byte 10")]


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [("utf16le", "utf-16le"), ("latn-1", "latin-1"), ("base64", None), ("idna", None), ("rot13", None)],
)
def test_an_encoding_that_is_none_is_refused_with_the_nearest(written: str, suggestion: str | None) -> None:
    with pytest.raises(InvalidKeyError, match=f"unknown encoding '{written}'") as refused:
        known_encoding(written)
    if suggestion:
        assert refused.value.suggestion == suggestion


DEEP = "[" * 100_000 + "]" * 100_000
ODD_LINES = {
    f'{{"text": "a", "x": {DEEP}}}': "nested too deeply",
    "[" * 100_000: "nested too deeply",
    '{"text": "huge", "n": %s}' % ("9" * 5000): "",
    '{"text": "not a number", "n": [NaN, -Infinity, 1e999]}': "",
    '{"text": "first", "text": "twice"}': "",
    '{"text": %s}' % ("9" * 5000): "of type int, not text",
    '\ufeff{"text": "marked"}': "",
    '{"text": "half \\ud800"}': "half of a surrogate pair",
    '{"text": "pair \\ud83d\\ude00"}': "",
    '{"text": "nul \\u0000"}': "",
    '{"text": "raw \t tab"}': "not valid JSON",
    '{"%s": 1}' % ("k" * 5000): "no field 'text'",
    '{"text": "cut': "not valid JSON",
    "\0" * 10: "not valid JSON",
}


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_an_odd_record_is_read_or_rejected_and_the_others_are_read(tmp_path: Path, layout: str) -> None:
    odd = [line for line in ODD_LINES if layout == "lines" or line.endswith("}")]
    file = tmp_path / ("a.jsonl" if layout == "lines" else "a.json")
    content = "\n".join(odd) if layout == "lines" else f"[{', '.join(odd)}]"
    file.write_text(content + "\n", encoding="utf-8")
    items = read(PathSource(path=str(file)))
    assert len(items) == len(odd)
    for line, item in zip(odd, items, strict=True):
        if ODD_LINES[line]:
            assert isinstance(item, Reject), line[:50]
            assert ODD_LINES[line] in item.reason
            assert len(item.reason) < 500
        else:
            assert not isinstance(item, Reject), line[:50]


def test_an_array_that_is_not_closed_stops_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b"},')
    with pytest.raises(EspanError, match=r"a\.json: cannot be read to its end: the JSON array in it is not"):
        read(PathSource(path=str(tmp_path)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_elements_are_the_same_wherever_the_text_is_cut(size: int) -> None:
    written = r'[{"a": "x\\", "b": "\"}]"}, [1, {"c": []}], "t,]", 5] {"d": 1} {"e": {}}'
    pieces = [written[start : start + size] for start in range(0, len(written), size)]
    expected = [{"a": "x\\", "b": '"}]'}, [1, {"c": []}], "t,]", 5, {"d": 1}, {"e": {}}]
    assert [json.loads(found or "") for found in records.values(pieces)] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
def test_what_is_too_long_is_rejected_without_being_held(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (text, records):
        monkeypatch.setattr(module, "LONGEST_DOCUMENT", 100)
    long, short = json.dumps({"text": "x" * 200}), json.dumps({"text": "short"})
    content = f"[{long}, {short}]" if name == "a.json" else f"{long}\n{short}\n"
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (tmp_path / name).write_bytes(packed)
    (tmp_path / "b.txt").write_text("short")
    items = read(PathSource(path=str(tmp_path)))
    assert texts(items) == ["short"] * (1 if name == "a.txt" else 2)
    assert [reason for _, reason in reasons(items)] == [text.TOO_LONG]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("ending", COMPRESS)
def test_members_frames_and_padding_are_read_as_one_file(tmp_path: Path, ending: str) -> None:
    halves = [COMPRESS[ending](lines(GOOD).encode()), COMPRESS[ending](lines(["more"]).encode())]
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"skip!"
    between = {".zst": skippable, ".xz": b"\0" * 8}.get(ending, b"")
    before = skippable if ending == ".zst" else b""
    (tmp_path / f"a.jsonl{ending}").write_bytes(before + between.join(halves))
    (tmp_path / f"b.jsonl{ending}").write_bytes(b"")
    (tmp_path / f"c.jsonl{ending}").write_bytes(COMPRESS[ending](b""))
    items = read(PathSource(path=str(tmp_path)))
    assert texts(items) == [*GOOD, "more"]
    assert not reasons(items)


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_follows_a_member_and_is_none_is_never_left_out_silently(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.jsonl{ending}").write_bytes(COMPRESS[ending](lines(GOOD).encode()) + b"something else")
    with pytest.raises(EspanError, match="cannot be read to its end"):
        read(PathSource(path=str(tmp_path)))


@pytest.mark.parametrize("kept", [0.5, 0.99])
@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json"])
def test_a_file_that_is_cut_short_is_named_and_stops_the_work(
    tmp_path: Path, kind: str, ending: str, kept: float
) -> None:
    content = COMPRESS[ending](lines([str(number**9) for number in range(2000)]).encode())
    (tmp_path / f"a{kind}{ending}").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(EspanError, match=rf"a\{kind}\{ending}: cannot be read to its end"):
        read(PathSource(path=str(tmp_path)))


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path, ending: str) -> None:
    packed = COMPRESS[ending](lines(GOOD).encode())
    (tmp_path / "a.jsonl").write_bytes(packed)
    (tmp_path / "b.txt").write_bytes(COMPRESS[ending](b"text"))
    (tmp_path / f"c.jsonl{ending}").write_text(lines(["plain"]))
    for target_bytes in (8, 1 << 20):
        assert texts(read(PathSource(path=str(tmp_path)), target_bytes)) == [*GOOD, "text", "plain"]


def frame(window_log: int, content: bytes) -> bytes:
    """A zstd frame that asks for a window of 2**window_log bytes, its content uncompressed in one block."""
    block = struct.pack("<I", len(content) << 3 | 1)[:3] + content
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window_log - 10 << 3]) + block


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_a_long_zstd_window_is_read(tmp_path: Path, window_log: int) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(frame(window_log, lines(["far"]).encode()))
    assert texts(read(PathSource(path=str(tmp_path)))) == ["far"]


def test_a_window_longer_than_zstd_reads_is_the_reason_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(frame(32, b"{}"))
    with pytest.raises(EspanError, match=r"its zstd window is of 4\.0 GiB, .* 2\.0 GiB at most"):
        read(PathSource(path=str(tmp_path)))


def test_the_plan_counts_a_windows_memory_and_refuses_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt.zst"
    stage = PrepareKeys.model_validate(
        {"sources": [{"path": str(file)}], "tokenizer": "builtin:tiny", "sequence_length": 8}
    )
    context = CheckContext("corpus", str(tmp_path / "out"), 0, str(tmp_path), {})
    file.write_bytes(frame(20, b"text"))
    usual = plan(stage, context)["memory"]
    file.write_bytes(frame(28, b"text"))
    assert "256.0 MiB of them a zstd window" in plan(stage, context)["memory"]
    assert "window" not in usual
    monkeypatch.setattr("pipelines.system.machine.available_memory", lambda: 400 << 20)
    with pytest.raises(InvalidKeyError, match=r"a\.txt\.zst: its zstd window takes 256\.0 MiB") as refused:
        check(stage, context)
    assert refused.value.key == "sources.0.path"


def test_a_bomb_is_read_within_bounds(tmp_path: Path) -> None:
    """Half a GiB of one line, in a few KiB of zstd and gzip: rejected, and never in memory as a whole."""
    program = (
        "import resource, sys\n"
        "from pipelines.prepare import text\n"
        "from pipelines.prepare.read import plan_parts, read_part\n"
        "from pipelines.prepare.sources import PathSource\n"
        "text.LONGEST_DOCUMENT = 1 << 20\n"
        "source = PathSource(path=sys.argv[1])\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "parts = plan_parts([source], 1 << 20)\n"
        "found = [item for part in parts for item in read_part(source, part, 0, None)]\n"
        "print(len(found), peak() - before)\n"
    )
    packer = zstandard.ZstdCompressor().compressobj()
    blocks = [packer.compress(b"x" * (1 << 20)) for _ in range(512)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(blocks) + packer.flush())
    with gzip.open(tmp_path / "b.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(b"x" * (1 << 20))
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rejected, mebibytes = map(int, done.stdout.split())
    assert rejected == 2
    assert mebibytes < 200
    assert decompress.LARGEST_WINDOW == 1 << 31
