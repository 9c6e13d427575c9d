"""Ten recipes with one mistake each: `espan run` prints one line about it and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.cli import main

BROKEN = Path(__file__).parents[2] / "data" / "broken"

PROBLEMS = {
    "chunk-not-whole-blocks": (
        "16: stages.tuned.train.attention.chunk_sizes.1: 250 is not a multiple of block_size 32; "
        "the nearest is 224"
    ),
    "duplicate-key": "18: stages.tuned.train.model: duplicate key, first given in line 15",
    "misspelt-key": "16: stages.tuned.train.attention.topk: unknown key; did you mean 'top_k'?",
    "missing-file": "9: stages.corpus.prepare.sources.0.path: no file matches",
    "missing-key": "13: stages.tuned.train.steps: this key is required and missing",
    "not-yaml": "16: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '}'",
    "step-not-whole-rows": (
        "18: stages.tuned.train.tokens_per_step: 4000 is not a multiple of 512 "
    ),
    "unknown-model": (
        "15: stages.tuned.train.model: nothing called 'builtin:tniy' ships with the package "
        "(known: builtin:tiny, builtin:ruler-tiny); did you mean 'builtin:tiny'?"
    ),
    "unknown-stage": (
        "14: stages.tuned.train.data: 'corpse' is neither an earlier stage nor a path that exists; "
        "did you mean 'corpus'?"
    ),
    "wrong-type": "17: stages.tuned.train.steps: must be a whole number, not '10'",
}  # fmt: skip


def test_the_ten_recipes_are_those_with_a_known_mistake() -> None:
    assert {path.stem for path in BROKEN.glob("*.yaml")} == set(PROBLEMS)
    assert len(PROBLEMS) == 10


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_a_mistake_is_one_line_with_file_line_and_key(
    name: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = BROKEN / f"{name}.yaml"
    monkeypatch.setattr(sys, "argv", ["espan", command, str(path), "--set", f"folder={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith(f"{path}:{PROBLEMS[name]}")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_same_recipe_without_a_mistake_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mended = (BROKEN / "wrong-type.yaml").read_text().replace('"10"', "10")
    (tmp_path / "mended.yaml").write_text(mended)
    monkeypatch.setattr(
        sys, "argv", ["espan", "plan", str(tmp_path / "mended.yaml"), "--set", f"folder={tmp_path}"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "tuned (train): would run" in capsys.readouterr().out
