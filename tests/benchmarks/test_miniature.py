"""The tables of the miniature recipe say what its studies found, and what is missing."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.miniature import STUDIES, app, collect, tables
from pipelines.recipe.parse import read_recipe


def write_study(workspace, name, *, finished, trials, rows):
    folder = workspace / name
    (folder / "se-attn-0" / "scores").mkdir(parents=True)
    study = {"format": "espan-study/1", "finished": finished, "trials": trials, "rows": rows}
    (folder / "results.json").write_text(json.dumps(study))
    scores = {"machine": {"cpus": 2}, "versions": {"torch": "2"}}
    (folder / "se-attn-0" / "scores" / "scores.json").write_text(json.dumps(scores))


def test_every_study_is_shown_with_what_is_missing(tmp_path):
    rows = [{"variant": "full attention", "recall": "1.000"}, {"variant": "SE-Attn", "less full": "-0.4"}]
    write_study(tmp_path, "attentions", finished=3, trials=5, rows=rows)
    write_study(tmp_path, "longer", finished=2, trials=2, rows=rows)
    result = collect(tmp_path)
    assert list(result["studies"]) == ["attentions", "longer"]
    assert (result["machine"], result["versions"]["torch"]) == ({"cpus": 2}, "2")
    shown = tables(result)
    assert "(2 of 5 trainings are missing):" in shown
    assert shown.count("missing") == 1
    assert shown.count("not run yet.") == 1
    assert "| variant | recall | less full |\n| --- | --- | --- |\n| full attention | 1.000 |  |" in shown


def test_a_run_without_results_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no study has a result"):
        collect(tmp_path)
    outcome = CliRunner().invoke(app, [str(tmp_path)])
    assert outcome.exit_code == 2
    assert "espan run pipelines/recipes/miniature.yaml" in " ".join(outcome.output.split())


def test_the_studies_are_the_recipe_s():
    recipe = read_recipe("pipelines/recipes/miniature.yaml")
    compared = [name for name, stage in recipe.stages.items() if stage.kind.name == "compare"]
    assert compared == list(STUDIES)
