"""The command line: quick, and clear about what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import duration, main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("run", "plan", "submit", "status", "logs", "stop", "report", "compare", "doctor")


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error of `espan ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["espan", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = call(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"espan {command}" in printed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "/nowhere.yaml"], "/nowhere.yaml: there is no such recipe"),
        (["run", "quikstart"], "quikstart: there is no such recipe; did you mean 'quickstart'?"),
        (["run", "quickstart", "--set", "books"], "espan: --set books: write it as --set name=value"),
        (
            ["report", "/nowhere"],
            "espan: /nowhere is not a run's workspace; `espan run` prints it when it starts",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_and_a_failure(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, errors = call(monkeypatch, capsys, *arguments)
    assert code != 0
    assert (printed, errors) == ("", f"{problem}\n")


def test_a_bug_is_one_line_unless_the_traceback_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("pipelines.run.plan.read_recipe", broken)
    (tmp_path / "r.yaml").touch()
    code, _, errors = call(monkeypatch, capsys, "plan", str(tmp_path / "r.yaml"))
    assert (code, errors) == (1, "espan: unexpected KeyError: 'x'; ESPAN_TRACEBACK=1 shows where\n")
    monkeypatch.setenv("ESPAN_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main()


def test_help_and_plan_load_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['espan', 'plan', 'tests/data/broken/wrong-type.yaml']\n"
        "from cluster.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (7.26, "7.3 s"), (59.96, "1 min 0 s"), (125.0, "2 min 5 s"), (3725.0, "1 h 2 min")],
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
