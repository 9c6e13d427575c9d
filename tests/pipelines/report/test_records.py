"""Which records count as this run's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.report.records import read_run

MakeWorkspace = Callable[..., Any]


def states(folder: Path) -> dict[str, str]:
    return {stage.name: stage.state for stage in read_run(str(folder)).stages}


def test_stages_are_told_in_the_recipes_order_with_their_state(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace(until="tuned")
    workspace.start("after")
    assert states(workspace.folder) == {
        "corpus": "finished",
        "before": "finished",
        "tuned": "finished",
        "after": "unfinished",
        "release": "not run",
        "page": "not run",
    }


def test_a_stage_whose_input_was_made_anew_is_not_shown_as_finished(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    record = Path(workspace.path("tuned"), "stage.json")
    old = read_run(str(workspace.folder)).stage("tuned")
    assert old is not None
    record.write_text(record.read_text().replace(old.finished["fingerprint"], "f" * 64))
    assert states(workspace.folder)["tuned"] == "finished"
    assert states(workspace.folder)["after"] == "unfinished"
    assert states(workspace.folder)["release"] == "unfinished"


def test_a_stage_with_other_keys_is_not_shown_as_finished(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    record = Path(workspace.path("before"), "stage.json")
    keys, rest = record.read_text().split('"inputs"', 1)
    record.write_text(keys.replace('"samples": 4', '"samples": 5') + '"inputs"' + rest)
    assert states(workspace.folder)["before"] == "unfinished"


def test_other_keys_of_execution_do_not_matter(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    record = Path(workspace.path("before"), "stage.json")
    keys, rest = record.read_text().split('"inputs"', 1)
    assert '"workers": null' in keys
    record.write_text(keys.replace('"workers": null', '"workers": 7') + '"inputs"' + rest)
    assert states(workspace.folder)["before"] == "finished"
