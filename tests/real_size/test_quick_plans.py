"""What was found once is not found again: not by a second plan, not by a run of what is finished."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.recipe.parse import read_recipe
from pipelines.records import FINISHED
from pipelines.run.lineage import FileHashes, Identity, finished_record, identify, started_record
from pipelines.run.plan import plan_recipe
from pipelines.run.workspace import workspace_of
from pipelines.system import storage
from pipelines.system.node_cache import VARIABLE

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "pipelines" / "recipes"
QUICKSTART = RECIPES / "quickstart.yaml"
HEAVY = {"nltk", "torch", "transformers", "peft", "ray", "deepspeed"}
COMMAND = """
import atexit, sys
atexit.register(lambda: print("loaded", *sorted({name.partition(".")[0] for name in sys.modules})))
from cluster.cli import main
main()
"""


def espan(folder: Path, *arguments: str, root: Path = ROOT) -> tuple[str, set[str]]:
    """Returns what a fresh process prints, and which packages it has loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(root), "ESPAN_HOME": str(folder), VARIABLE: str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.rpartition("loaded ")
    return text, set(loaded.split())


@pytest.mark.parametrize("recipe", ["quickstart", "ruler"])
def test_a_second_plan_says_the_same_and_loads_nothing_heavy(recipe: str, tmp_path: Path) -> None:
    place = str(RECIPES / f"{recipe}.yaml")
    first, loaded = espan(tmp_path, "plan", place)
    assert HEAVY & loaded >= {"torch", "transformers"}, "the first plan has nothing to ask"
    assert "memory: " in first
    second, loaded = espan(tmp_path, "plan", place)
    assert second == first
    assert not HEAVY & loaded


def finish(path: Path) -> None:
    """Writes what a run leaves behind that says that every stage is finished."""
    recipe = read_recipe(path, {})
    workspace = workspace_of(recipe)
    known: dict[str, Identity] = {}
    for name, stage in recipe.stages.items():
        known[name] = identify(recipe, stage, known, FileHashes.load(workspace))
        output = storage.join(workspace, name)
        result = {"headline": "", "page": "page.html"}
        started = started_record(stage, known[name])
        record = finished_record(recipe, started, result, "2026-01-01", "2026-01-01", 1.0)
        storage.make_folder(output)
        storage.write_json_atomic(storage.join(output, FINISHED), record)


def test_what_is_finished_is_not_asked_about_in_a_run_or_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPAN_HOME", str(tmp_path))
    finish(QUICKSTART)
    for command in ("run", "plan"):
        text, loaded = espan(tmp_path, command, str(QUICKSTART))
        assert "finished" in text
        assert not {*HEAVY, "tokenizers", "se_model"} & loaded
    assert not (tmp_path / "cache").exists(), "something was asked"


def test_a_plan_needs_no_cache_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ESPAN_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new"))
    expected = plan_recipe(QUICKSTART)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert plan_recipe(QUICKSTART) == expected


IDENTITY = "from pipelines.system.installed import code_identity; print(code_identity())"


def identity(root: Path, *more: Path, **variables: Any) -> str | None:
    """Returns the identity of the code in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, *more))), **variables}
    done = subprocess.run(
        [sys.executable, "-c", IDENTITY],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_other_code_gives_other_answers(tmp_path: Path) -> None:
    """Ours, in any file; a library's version; a package that was not there; a variable of torch."""
    root, packages = tmp_path / "root", tmp_path / "packages"
    for package in ("se_model", "pipelines"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    original = identity(root)
    assert original == identity(root) != "None"
    found = {original}
    for file in (
        "se_model/attach/packing.py",
        "pipelines/models/bos.py",
        "pipelines/train/plan/memory/engine.py",
    ):
        (root / file).write_text((root / file).read_text() + "\n# changed\n")
        found.add(identity(root))
    (root / "se_model" / "new.py").touch()
    found.add(identity(root))
    assert len(found) == 5
    (packages / "some_kernels-1.0.dist-info").mkdir(parents=True)
    found.add(identity(root, packages))
    (packages / "some_kernels-1.0.dist-info").rename(packages / "some_kernels-1.1.dist-info")
    found.add(identity(root, packages))
    found.add(identity(root, TORCH_DEVICE_BACKEND_AUTOLOAD="0"))
    assert len(found) == 8
    assert "None" not in found
    (packages / "transformers").mkdir()
    (packages / "transformers" / "__init__.py").touch()
    assert identity(root, packages) == "None", "a checkout's version says nothing of its content"
