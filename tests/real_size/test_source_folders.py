"""One rule for what a source folder holds, as a folder or a pattern; what is not read is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError
from pipelines.prepare.check import check, plan
from pipelines.prepare.sources import UNKNOWN_ENDING, files_of, passed_over_by
from pipelines.recipe.keys.prepare import PathSource, PrepareKeys
from pipelines.recipe.parse import resolve
from pipelines.recipe.yaml_source import parse_yaml
from pipelines.run.lineage import FileHashes, identify
from pipelines.system import storage
from pipelines.system.listing import BROKEN, HIDDEN, LOOP, NO_FILE, NOT_SEARCHED
from tests.pipelines.prepare.reading import read, texts

LEAVINGS = [
    ".DS_Store",
    "._a.txt",
    ".#a.txt",
    ".a.txt.swp",
    "a.txt~",
    "#a.txt#",
    "a.jsonl.part",
    "b.txt.crdownload",
    "a.txt.tmp1",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/a.txt",
    ".ipynb_checkpoints/a.txt",
    "in/.git/a.txt",
    "lost+found/a.txt",
]


def found(path: Path | str) -> tuple[list[str], dict[str, str]]:
    """Returns the source's files, and what is passed over and why, all below their common folder."""
    source = PathSource(path=str(path))
    folder = str(path).partition("*")[0].rstrip("/")

    def short(place: str) -> str:
        return place.removeprefix(folder).lstrip("/")

    over = {short(one.place): one.reason for one in passed_over_by(source)}
    return [short(file) for file in files_of(source)], over


@pytest.fixture(params=["folder", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "corpus") if request.param == "folder" else f"memory://corpus{tmp_path}"


def fill(root: str, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        storage.write_bytes_atomic(storage.join(root, name), content)


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_what_programs_leave_behind_is_passed_over_and_named(root: str, pattern: str) -> None:
    fill(root, dict.fromkeys(["a.txt", "in/b.TXT", "notes.md", *LEAVINGS], b"text"))
    files, over = found(root + pattern)
    assert files == ["a.txt", "in/b.TXT"]
    hidden = {"in/.git" if name.startswith("in/") else name.split("/")[0] for name in LEAVINGS}
    assert over == {**dict.fromkeys(hidden, HIDDEN), "notes.md": UNKNOWN_ENDING}


def test_what_is_hidden_is_read_where_it_is_named(root: str) -> None:
    fill(root, {".corpus/a.txt": b"text", ".b.txt": b"text"})
    assert found(storage.join(root, ".corpus"))[0] == ["a.txt"]
    assert files_of(PathSource(path=storage.join(root, ".b.txt"))) == [storage.join(root, ".b.txt")]
    assert files_of(PathSource(path=storage.join(root, ".*.txt"))) == [storage.join(root, ".b.txt")]
    with pytest.raises(InvalidKeyError, match=r"no file matches .*\.b\.txt is passed over \(hidden"):
        files_of(PathSource(path=root))


@pytest.mark.parametrize("compress", [None, gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_endings_count_in_any_case_and_with_every_compression(tmp_path: Path, compress: object) -> None:
    ending = {gzip.compress: ".GZ", zstandard.compress: ".zst", bz2.compress: ".Bz2", lzma.compress: ".xz"}
    contents = {
        "A.TXT": b"one",
        "b.Jsonl": b'{"text": "two"}\n{"text": "three"}\n',
        "c.ndJSON": b'{"text": "four"}',
        "d.json": b'{"text": "five"}\r\n{"text": "six"}\r\n',
        "e.json": b'[{"text": "seven"},\n {"text": "eight"}]',
        "f.JSON": b'{\n  "text": "nine"\n}\n',
    }
    for name, content in contents.items():
        packed = compress(content) if callable(compress) else content
        (tmp_path / (name + ending.get(compress, ""))).write_bytes(packed)  # type: ignore[call-overload]
    expected = "one two three four five six seven eight nine".split()
    assert texts(read(PathSource(path=str(tmp_path)))) == expected


def test_links_are_followed_and_those_that_lead_nowhere_or_around_are_named(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (corpus / "in").mkdir(parents=True)
    (elsewhere / "deep" / "a.txt").write_text("text")
    (corpus / "folder").symlink_to(os.path.relpath(elsewhere, corpus))
    (corpus / "file.txt").symlink_to(elsewhere / "deep" / "a.txt")
    (corpus / "broken.txt").symlink_to("nothing.txt")
    (corpus / "in" / "up").symlink_to(corpus)
    (elsewhere / "back").symlink_to(corpus)
    os.mkfifo(corpus / "pipe.txt")
    files, over = found(corpus)
    assert files == ["file.txt", "folder/deep/a.txt"]
    assert over == {"broken.txt": BROKEN, "folder/back": LOOP, "in/up": LOOP, "pipe.txt": NO_FILE}
    assert found(f"{corpus}/*/*/*.txt")[0] == [
        "folder/back/file.txt",
        "folder/deep/a.txt",
        "in/up/file.txt",
    ]
    assert found(f"{corpus}/*") == (
        ["file.txt"],
        {"broken.txt": BROKEN, "folder": NOT_SEARCHED, "in": NOT_SEARCHED, "pipe.txt": NO_FILE},
    )


def test_a_folder_deeper_than_python_recurses_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    depth = sys.getrecursionlimit() + 100
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.txt").write_text("text")
    try:
        assert len(files_of(PathSource(path=str(tmp_path)))) == 1
    finally:  # pytest's own cleaning recurses
        Path("a.txt").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")


def fingerprint(corpus: str, workspace: Path) -> str:
    text = "name: r\nstages:\n  corpus:\n    prepare: {sources: [{path: %s}], tokenizer: 'builtin:tiny', "
    recipe = resolve(parse_yaml(text % corpus + "sequence_length: 8}\n", "r.yaml"), {})
    return identify(recipe, recipe.stages["corpus"], {}, FileHashes.load(str(workspace))).fingerprint


def test_the_fingerprint_covers_what_is_read_through_links_and_nothing_else(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus, elsewhere):
        folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (elsewhere / name).write_text(name)
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "c.txt").symlink_to(elsewhere / "a.txt")
    before = fingerprint(str(corpus), tmp_path)
    for name in (".DS_Store", "notes.md", "c.txt~"):
        (corpus / name).write_text("left behind")
    assert fingerprint(str(corpus), tmp_path) == before
    (elsewhere / "b.txt").write_text("other")
    changed = fingerprint(str(corpus), tmp_path)
    assert changed != before
    (corpus / "c.txt").unlink()
    (corpus / "c.txt").symlink_to(elsewhere / "b.txt")
    assert fingerprint(str(corpus), tmp_path) not in (before, changed)


def test_a_link_that_leads_to_another_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    hashes = FileHashes.load(str(tmp_path))
    link.symlink_to("one")
    first = hashes.of(str(link))
    link.unlink()
    link.symlink_to("two")
    assert hashes.of(str(link)) == storage.content_hash(str(tmp_path / "two")) != first


def test_the_plan_counts_and_names_what_is_passed_over(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ["a.txt", "latin-\udce9.md", *(f"{number}.md" for number in range(9))]:
        (corpus / name).write_text("text")
    stage = PrepareKeys.model_validate(
        {"sources": [{"path": str(corpus)}], "tokenizer": "builtin:tiny", "sequence_length": 8}
    )
    planned = plan(stage, CheckContext("corpus", str(tmp_path / "out"), 0, str(tmp_path), {}))
    assert planned["passed over"].startswith("10: 0.md (its ending is not known), 1.md (")
    assert planned["passed over"].endswith(" and 5 more")


def test_a_name_that_is_not_utf_8_is_read_and_its_rejects_named(tmp_path: Path) -> None:
    (tmp_path / "ok.txt").write_text("fine")
    (tmp_path / "caf\udce9.txt").write_text("also fine")
    (tmp_path / "caf\udce9.jsonl").write_text("not json")
    items = read(PathSource(path=str(tmp_path)))
    assert texts(items) == ["also fine", "fine"]
    (reject,) = [item for item in items if not hasattr(item, "text")]
    assert reject.file == str(tmp_path / "caf\udce9.jsonl")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json.gz", "a.jsonl.zst", "a.parquet"])
def test_a_git_lfs_pointer_is_named_and_not_read_as_text(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / name).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    )
    stage = PrepareKeys(sources=[PathSource(path=str(tmp_path))], tokenizer="builtin:tiny", sequence_length=8)
    with pytest.raises(InvalidKeyError, match=rf"{name} is a Git LFS pointer; .*`git lfs pull`") as refusal:
        check(stage, CheckContext("corpus", str(tmp_path / "run"), 0, str(tmp_path), {}, False))
    assert refusal.value.key == "sources.0.path"
