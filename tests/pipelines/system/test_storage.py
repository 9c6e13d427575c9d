"""Files behind one set of functions: atomic, and the same in a folder and in an object store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipelines.system import storage


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "files") if request.param == "folder" else f"memory://files{tmp_path}"


def test_what_is_written_is_read_back(place: str) -> None:
    target = storage.join(place, "deep", "a.json")
    assert not storage.exists(target)
    for value in ({"a": [1, 2.5, None, "Größe"]}, {"b": 2}):
        storage.write_json_atomic(target, value)
        assert storage.read_json(target) == value
    assert storage.is_folder(storage.join(place, "deep"))
    assert not storage.is_folder(target)


def test_json_has_no_nan_and_a_broken_file_is_named(place: str) -> None:
    target = storage.join(place, "a.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json_atomic(target, {"loss": float("nan")})
    storage.write_text_atomic(target, "{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        storage.read_json(target)


def test_a_failed_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    storage.write_text_atomic(str(target), "old")

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        storage.write_text_atomic(str(target), "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_a_written_file_has_the_mode_that_any_new_file_has(tmp_path: Path) -> None:
    storage.write_text_atomic(str(tmp_path / "a"), "x")
    (tmp_path / "b").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


def test_only_the_first_of_two_creates_a_file(place: str) -> None:
    storage.make_folder(place)
    target = storage.join(place, "lock")
    assert storage.create_exclusively(target, b"first")
    assert not storage.create_exclusively(target, b"second")
    assert storage.read_bytes(target) == b"first"
    for _ in range(2):
        storage.remove(target)
    assert not storage.exists(target)


def test_a_file_a_folder_and_a_glob_stand_for_their_files(place: str) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        storage.write_text_atomic(storage.join(place, name), name)
    inside = [storage.join(place, name) for name in ("a.txt", "b.txt", "d.md", "deep/c.txt")]
    assert storage.glob(place) == inside
    assert storage.glob(f"{place}/*.txt") == inside[:2]
    assert storage.glob(inside[0]) == inside[:1]
    assert storage.glob(f"{place}/none") == storage.glob(f"{place}/*.none") == []


def test_folders_are_listed_sorted_without_hidden_ones(place: str) -> None:
    for name in ("b/x", "a/y", ".hidden/z", "file"):
        storage.write_text_atomic(storage.join(place, name), name)
    assert storage.list_folders(place) == [storage.join(place, "a"), storage.join(place, "b")]
    assert storage.list_folders(storage.join(place, "none")) == []


def test_a_content_hash_follows_the_content(place: str) -> None:
    target, hashes = storage.join(place, "a"), []
    for content in (b"one", b"two!", b"one"):
        storage.write_bytes_atomic(target, content)
        hashes.append(storage.content_hash(target))
    assert hashes[0] != hashes[1]
    if not storage.is_remote(place):
        assert hashes[0] == hashes[2]
    with pytest.raises(FileNotFoundError):
        storage.content_hash(storage.join(place, "none"))


def test_a_folder_goes_up_and_comes_down_whole(place: str, tmp_path: Path) -> None:
    contents = {"a": b"1", "deep/b": b"2", "deep/er/c": b""}
    for name, content in contents.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    storage.upload_folder(tmp_path / "up", storage.join(place, "there"))
    storage.download_folder(storage.join(place, "there"), tmp_path / "down")
    down = tmp_path / "down"
    assert {
        file.relative_to(down).as_posix(): file.read_bytes() for file in down.rglob("*") if file.is_file()
    } == contents
    with pytest.raises(FileNotFoundError, match="nothing lies below"):
        storage.download_folder(storage.join(place, "none"), down)


def test_a_moved_folder_is_at_its_new_place_only(place: str) -> None:
    for name in ("a", "deep/b"):
        storage.write_text_atomic(storage.join(place, "old", name), name)
    storage.move_folder(storage.join(place, "old"), storage.join(place, ".previous", "old-1"))
    assert not storage.glob(storage.join(place, "old"))
    assert storage.read_text(storage.join(place, ".previous", "old-1", "deep/b")) == "deep/b"


def test_places_are_joined_with_single_slashes() -> None:
    assert storage.join("s3://bucket/", "/run", "stage/") == "s3://bucket/run/stage"
    assert storage.join("/data", "run") == "/data/run"
    assert storage.join("/", "run") == "/run"
    assert storage.is_remote("s3://bucket")
    assert not storage.is_remote("file:///data")
    assert storage.local_path("file:///data") == Path("/data")
