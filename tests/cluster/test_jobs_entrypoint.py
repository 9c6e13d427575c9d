"""What `espan submit` decides before it talks to a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cluster.jobs import entrypoint, job_name, submit
from pipelines.errors import EspanError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "recipes" / "quick start.yaml").write_text("name: quick\n")
    return tmp_path / "project"


def test_the_job_runs_the_recipe_as_seen_from_the_working_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["books=/data/my books", "steps=3"]
    expected = ["espan", "run", "recipes/quick start.yaml", "--set", settings[0], "--set", settings[1]]
    assert shlex.split(entrypoint(f"{project}/recipes/quick start.yaml", project, settings)) == expected
    monkeypatch.chdir(project / "recipes")
    assert shlex.split(entrypoint("quick start.yaml", Path(".."), settings)) == expected


def test_a_missing_recipe_is_named_with_the_nearest_one(project: Path) -> None:
    with pytest.raises(EspanError, match=r"no such recipe; did you mean '.*quick start\.yaml'"):
        entrypoint(f"{project}/recipes/quickstart.yaml", project, [])


def test_a_recipe_that_would_not_travel_is_refused(project: Path) -> None:
    outside = project.parent / "outside.yaml"
    outside.write_text("name: outside\n")
    with pytest.raises(EspanError, match="outside the working directory"):
        entrypoint(str(outside), project, [])


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("name: quick\nstages: {a: {prepaer: {}}}\n", [], r"quick start\.yaml:2: .*did you mean 'prepare'"),
        ("name: quick\nstages: {a: {report: {}}}\n", ["books"], "name=value"),
        (
            "name: quick\nvariables: {books: x}\nstages: {a: {report: {}}}\n",
            ["boks=y"],
            "did you mean 'books'",
        ),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_before_a_cluster_is_asked(
    project: Path, text: str, settings: list[str], message: str
) -> None:
    recipe = project / "recipes" / "quick start.yaml"
    recipe.write_text(text)
    with pytest.raises(EspanError, match=message):
        submit(str(recipe), address="http://127.0.0.1:9", settings=settings, working_dir=project)


def test_jobs_of_one_recipe_have_different_names_that_say_which() -> None:
    names = {job_name("quick start") for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith("quick-start-") for name in names)
