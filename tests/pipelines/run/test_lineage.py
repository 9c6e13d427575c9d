"""Fingerprints: what changes them, and that a file is hashed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.recipe.parse import resolve
from pipelines.recipe.yaml_source import parse_yaml
from pipelines.run.lineage import FileHashes, Identity, identify
from pipelines.system import storage


def identities(text: str, workspace: Path) -> dict[str, Identity]:
    recipe = resolve(parse_yaml(text, "r.yaml"), {})
    hashes = FileHashes.load(str(workspace))
    known: dict[str, Identity] = {}
    for stage in recipe.stages.values():
        known[stage.name] = identify(recipe, stage, known, hashes)
    return known


def recipe(folder: Path, *, value: int = 1, seed: int = 0) -> str:
    terms = f"[{{file: one}}, {{file: one/number.txt}}, {{file: {folder}}}]"
    return (
        f"name: r\nseed: {seed}\nstages:\n  one: {{number: {{value: {value}}}}}\n"
        f"  sum: {{total: {{of: [one], terms: {terms}}}}}\n"
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "deep" / "b").write_text("2")
    return folder


def test_layout_names_and_comments_leave_a_fingerprint_alone(tmp_path: Path) -> None:
    plain = identities("name: r\nstages:\n  one: {number: {value: 1}}\n", tmp_path)
    other = identities("# new\nname: s\nstages:\n  uno:\n    number: {log_every: 9, value: 1}\n", tmp_path)
    assert plain["one"].fingerprint == other["uno"].fingerprint


@pytest.mark.parametrize("changes", [{"value": 2}, {"seed": 1}])
def test_a_changed_key_or_seed_reaches_the_stages_downstream(
    files: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    before = identities(recipe(files), tmp_path)
    after = identities(recipe(files, **changes), tmp_path)
    assert before["one"].fingerprint != after["one"].fingerprint
    assert before["sum"].fingerprint != after["sum"].fingerprint


def test_every_file_below_a_folder_counts(files: Path, tmp_path: Path) -> None:
    seen = {identities(recipe(files), tmp_path)["sum"].fingerprint}
    for change in (
        lambda: (files / "deep" / "b").write_text("3"),
        lambda: (files / "c").write_text(""),
        lambda: (files / "c").rename(files / "d"),
        lambda: (files / "a").unlink(),
    ):
        change()
        found = identities(recipe(files), tmp_path)
        assert found["sum"].fingerprint not in seen
        seen.add(found["sum"].fingerprint)


def test_what_lies_below_an_earlier_stage_is_covered_by_its_fingerprint(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "number.txt").write_text("1")
    monkeypatch.chdir(tmp_path)
    found = identities(recipe(files), tmp_path)["sum"].files
    assert sorted(found) == [str(files / "a"), str(files / "deep" / "b")]


def test_a_file_is_read_again_only_when_it_changed(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    content_hash = storage.content_hash
    monkeypatch.setattr(storage, "content_hash", lambda place: read.append(place) or content_hash(place))
    for expected in (["a"], [], ["a"]):
        read.clear()
        hashes = FileHashes.load(str(tmp_path))
        hashes.of(str(files / "a"))
        hashes.save()
        assert [Path(place).name for place in read] == expected
        if not expected:
            (files / "a").write_text("longer")


def test_an_unreadable_memory_of_hashes_is_made_anew(files: Path, tmp_path: Path) -> None:
    (tmp_path / ".hashes.json").write_text("{")
    hashes = FileHashes.load(str(tmp_path))
    assert hashes.of(str(files / "a")) == storage.content_hash(str(files / "a"))


def test_a_copied_corpus_is_the_same_input(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe(Path("files"))
    monkeypatch.chdir(tmp_path)
    before = identities(text, tmp_path)
    shutil.copytree(files, tmp_path / "elsewhere" / "files")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert identities(text, tmp_path)["sum"].fingerprint == before["sum"].fingerprint
