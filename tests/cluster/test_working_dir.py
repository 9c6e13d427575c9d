from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cluster.working_dir import pack_working_dir, packed_files
from pipelines.errors import EspanError


def lay(root: Path, *names: str, content: str = "x") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def travelling(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in packed_files(root)}


def test_environments_histories_caches_and_runs_stay_behind(tmp_path: Path) -> None:
    kept = {"pyproject.toml", "pipelines/run/runner.py", "pipelines/recipes/quickstart.yaml", ".ci/run"}
    left = [
        ".git/HEAD",
        ".venv/bin/python",
        "runs/a/model.bin",
        "pipelines/__pycache__/run.pyc",
        ".mypy_cache/a",
    ]
    lay(tmp_path, *kept, *left)
    assert travelling(tmp_path) == kept


def test_ignore_files_are_obeyed_as_git_does(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "a.log",
        "keep.log",
        "data/big.bin",
        "src/data/small.bin",
        "src/out/x",
        "src/deep/out/y",
        "ray.bin",
    )
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/data\n")
    (tmp_path / ".rayignore").write_text("ray.bin\n")
    lay(tmp_path, "src/told.log")
    (tmp_path / "src" / ".gitignore").write_text("/out/\n!told.log\n")
    ignore_files = {".gitignore", ".rayignore", "src/.gitignore"}
    assert travelling(tmp_path) - ignore_files == {
        "keep.log",
        "src/data/small.bin",
        "src/deep/out/y",
        "src/told.log",
    }


def test_the_archive_depends_on_the_files_alone(tmp_path: Path) -> None:
    archives = []
    for order in (("a.py", "b/c.py"), ("b/c.py", "a.py")):
        root = lay(tmp_path / order[0].replace("/", "-"), *order)
        archive = root.with_suffix(".zip")
        assert pack_working_dir(root, archive).files == 2
        archives.append(archive.read_bytes())
    assert archives[0] == archives[1]


def test_files_lie_in_the_archive_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = lay(tmp_path / "root", *(f"{name}.py" for name in "qwertzuiopasdfgh"))
    pack_working_dir(root, tmp_path / "archive.zip")
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        assert archive.namelist() == sorted(archive.namelist())


def test_a_link_to_a_folder_does_not_travel(tmp_path: Path) -> None:
    root = lay(tmp_path / "root", "a.py")
    (root / "again").symlink_to(root)
    (root / "b.py").symlink_to(root / "a.py")
    assert travelling(root) == {"a.py", "b.py"}


def test_files_keep_content_and_permission_to_run(tmp_path: Path) -> None:
    root = lay(tmp_path / "root", "scripts/run", content="#!/bin/sh\n")
    (root / "scripts" / "run").chmod(0o755)
    pack_working_dir(root, tmp_path / "archive.zip")
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        assert archive.read("scripts/run") == b"#!/bin/sh\n"
        assert archive.getinfo("scripts/run").external_attr >> 16 == 0o755


@pytest.mark.parametrize(
    ("limits", "state"),
    [({"content_limit": 1000}, "before compression"), ({"upload_limit": 100}, "compressed")],
)
def test_too_much_is_refused_naming_the_largest_file(
    limits: dict[str, int], state: str, tmp_path: Path
) -> None:
    root = lay(tmp_path / "root", "small.py")
    lay(root, "books/large.txt", content="word " * 1000)
    with pytest.raises(EspanError, match=rf"{state}.*\(largest: books/large.txt"):
        pack_working_dir(root, tmp_path / "archive.zip", **limits)


def test_a_folder_with_nothing_to_send_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match="nothing to send"):
        pack_working_dir(lay(tmp_path / "root", ".git/HEAD"), tmp_path / "archive.zip")
    with pytest.raises(EspanError, match="not a folder"):
        pack_working_dir(tmp_path / "absent", tmp_path / "archive.zip")
