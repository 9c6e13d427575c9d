"""`pipelines.system.storage` against a server that checks signatures and keeps its objects on disk."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipelines.prepare.sources import files_of, passed_over_by
from pipelines.recipe.keys.prepare import PathSource
from pipelines.system import storage
from pipelines.system.filesystems import filesystem


def test_json_comes_back_as_it_was_written_and_the_last_write_counts(bucket: str) -> None:
    place = storage.join(bucket, "run", "stage.json")
    storage.write_json_atomic(place, {"step": 1})
    storage.write_json_atomic(place, {"step": 2, "name": "Größe"})
    assert storage.read_json(place) == {"step": 2, "name": "Größe"}


def test_a_reader_during_rewrites_sees_a_whole_object_every_time(bucket: str) -> None:
    place = storage.join(bucket, "state.json")
    versions = [{"version": letter, "filler": letter * 300_000} for letter in "ab"]
    storage.write_json_atomic(place, versions[0])
    done = threading.Event()

    def rewrite() -> None:
        for turn in range(12):
            storage.write_json_atomic(place, versions[turn % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(storage.read_json(place))
    writer.join()
    assert seen
    assert all(each in versions for each in seen)


def test_what_is_absent_is_neither_a_file_nor_a_folder(bucket: str) -> None:
    storage.write_bytes_atomic(storage.join(bucket, "corpus", "manifest.json"), b"{}")
    assert storage.exists(storage.join(bucket, "corpus", "manifest.json"))
    assert storage.is_folder(storage.join(bucket, "corpus"))
    assert not storage.exists(storage.join(bucket, "corp"))
    assert not storage.is_folder(storage.join(bucket, "corp"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(bucket, "corpus", "manifest"))


def test_glob_finds_files_at_every_depth_sorted_and_as_urls(bucket: str) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "other.md"):
        storage.write_text_atomic(storage.join(bucket, "books", name), name)
    books = storage.join(bucket, "books")
    assert storage.glob(f"{books}/*.txt") == [f"{books}/a.txt", f"{books}/b.txt"]
    assert storage.glob(books) == [f"{books}/{name}" for name in ("a.txt", "b.txt", "deep/c.txt", "other.md")]


def test_a_content_hash_changes_with_the_content_and_only_with_it(bucket: str) -> None:
    place = storage.join(bucket, "object")
    hashes = []
    for content in (b"one", b"two", b"one"):
        storage.write_bytes_atomic(place, content)
        hashes.append(storage.content_hash(place))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_folder_uploaded_and_downloaded_is_the_same_folder(bucket: str, tmp_path: Path) -> None:
    contents = {"COMMITTED": b"", "state.json": b"{}", "engine/shard.bin": bytes(range(256)) * 30_000}
    for name, content in contents.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    place = storage.join(bucket, "checkpoints", "step-5")
    storage.upload_folder(tmp_path / "up", place)
    storage.download_folder(place, tmp_path / "down")
    down = tmp_path / "down"
    assert {str(p.relative_to(down)): p.read_bytes() for p in down.rglob("*") if p.is_file()} == contents


def test_a_large_object_is_written_in_parts_and_read_back_whole(bucket: str) -> None:
    content = bytes(range(251)) * 50_000  # 12 MiB: more than two parts of S3's least size
    file_system, path = filesystem(storage.join(bucket, "large"))
    with file_system.open(path, "wb", block_size=5 * 2**20) as file:
        file.write(content)
    assert storage.read_bytes(storage.join(bucket, "large")) == content


def test_a_moved_folder_is_at_its_new_place_only(bucket: str) -> None:
    old, new = storage.join(bucket, "stage"), storage.join(bucket, ".previous", "stage-1")
    for name in ("a.json", "deep/b.json"):
        storage.write_text_atomic(storage.join(old, name), name)
    storage.move_folder(old, new)
    assert not storage.exists(storage.join(old, "a.json"))
    assert [storage.read_text(storage.join(new, name)) for name in ("a.json", "deep/b.json")] == [
        "a.json",
        "deep/b.json",
    ]


@pytest.mark.usefixtures("wrong_secret")
def test_a_wrong_secret_is_refused(bucket: str) -> None:
    with pytest.raises(PermissionError):
        storage.write_json_atomic(storage.join(bucket, "state.json"), {})


ODD_KEYS = ["draft [1] Bücher", "what?* {a,b} +&=", "~a#b%20c::d"]


@pytest.mark.parametrize("name", ODD_KEYS)
def test_a_key_of_any_name_is_found_listed_moved_and_removed(bucket: str, tmp_path: Path, name: str) -> None:
    folder = storage.join(bucket, "books", name)
    names = ["[x].txt", "a.txt", "deep/b.txt"]
    for each in names:
        storage.write_text_atomic(storage.join(folder, each), each)
    storage.write_text_atomic(storage.join(bucket, "books", "d", "other.txt"), "text")
    inside = [storage.join(folder, each) for each in names]
    assert storage.glob(folder) == inside
    assert storage.glob(f"{folder}/*.txt") == inside[:2]
    assert storage.glob(f"{folder}/**/b.txt") == inside[2:]
    assert storage.glob(inside[0]) == inside[:1]
    assert storage.read_text(inside[0]) == "[x].txt"
    assert storage.is_folder(folder)
    moved = storage.join(bucket, name)
    storage.move_folder(folder, moved)
    storage.download_folder(moved, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["[x].txt", "a.txt", "deep"]
    storage.remove_folder(moved)
    assert not storage.exists(moved)
    assert storage.glob(bucket) == [storage.join(bucket, "books", "d", "other.txt")]


def test_a_source_folder_follows_the_same_rule_as_a_local_one(bucket: str) -> None:
    books = storage.join(bucket, "books [draft]")
    for name in ("A.TXT", "b.txt", ".DS_Store", ".git/c.txt", "deep/d.txt~", "notes.md", "e.Json.GZ"):
        storage.write_text_atomic(storage.join(books, name), "text")
    for path in (books, f"{books}/**"):
        source = PathSource(path=path)
        assert files_of(source) == [f"{books}/{name}" for name in ("A.TXT", "b.txt", "e.Json.GZ")]
        over = [one.place.removeprefix(f"{books}/") for one in passed_over_by(source)]
        assert over == [".DS_Store", ".git", "deep/d.txt~", "notes.md"]
