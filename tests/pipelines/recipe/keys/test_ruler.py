"""Keys of RULER: the paper's tasks by default, each in a group, and questions only with their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines.recipe.keys.ruler import RULER_GROUPS, RULER_TASKS, NeedleTask, QuestionTask, RulerSection


def section(**keys: Any) -> RulerSection:
    return RulerSection.model_validate({"lengths": (4096,)} | keys)


def test_the_papers_eleven_tasks_are_the_default_and_every_task_has_a_group() -> None:
    assert section().tasks == RULER_TASKS
    assert len(set(RULER_TASKS)) == 11
    assert RULER_GROUPS.keys() == {*RULER_TASKS, *get_args(QuestionTask)}
    assert set(RULER_TASKS) > set(get_args(NeedleTask))


def test_questions_need_their_file() -> None:
    assert section(tasks=("qa_squad",), squad="dev-v2.0.json").squad == "dev-v2.0.json"
    with pytest.raises(ValueError, match="hotpot: task qa_hotpot needs a file of questions"):
        section(tasks=("qa_hotpot",), squad="dev-v2.0.json")


@pytest.mark.parametrize("keys", [{"lengths": (4096, 4096)}, {"tasks": ("vt", "vt")}])
def test_nothing_is_asked_for_twice(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is given twice"):
        section(**keys)


def test_files_are_named_by_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    keys = section(essays="essays", squad="a.json", hotpot="b.json", tokenizer="owner/name").absolute()
    assert keys.essays == str(tmp_path / "essays")
    assert (keys.squad, keys.hotpot) == (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert keys.tokenizer == "owner/name"
