"""The runner: order, skipping, going on, setting aside; what a kill, a signal or a failure leaves behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import EspanError, InterruptedRunError, WorkspaceBusyError
from pipelines.run.runner import RunSummary, run_recipe
from pipelines.system import storage
from pipelines.system.progress import Progress

WriteRecipe = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]

SUM = """\
name: sums
seed: 3
variables: {n: 1, every: 1}
stages:
  one: {number: {value: "${n}", log_every: "${every}"}}
  two: {number: {value: 2}}
  sum: {total: {of: [one]}}
"""


def run(path: Path, **settings: str) -> RunSummary:
    return run_recipe(path, settings, Progress(io.StringIO()))


def states(summary: RunSummary) -> dict[str, str]:
    return {stage.name: stage.state for stage in summary.stages}


@contextmanager
def espan(program: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Runs the command in a process of its own, which does not outlive the body."""
    command = [sys.executable, str(program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_there(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def test_stages_run_in_order_and_see_what_they_refer_to(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    summary = run(write_recipe(SUM))
    assert [(stage.name, stage.kind, stage.state) for stage in summary.stages] == [
        ("one", "number", "done"),
        ("two", "number", "done"),
        ("sum", "total", "done"),
    ]
    assert summary.stages[2].headline == "total 1"
    assert summary.workspace == str(tmp_path / "run")


def test_a_second_run_finds_everything_finished(write_recipe: WriteRecipe) -> None:
    path = write_recipe(SUM)
    first = run(path)
    second = run(path)
    assert second.ran == 0
    assert set(states(second).values()) == {"finished earlier"}
    assert [stage.headline for stage in second.stages] == [stage.headline for stage in first.stages]


def test_a_changed_stage_runs_again_with_those_that_use_it_and_no_others(write_recipe: WriteRecipe) -> None:
    path = write_recipe(SUM)
    run(path)
    assert states(run(path, n="5")) == {"one": "done", "two": "finished earlier", "sum": "done"}


def test_an_execution_key_changes_nothing(write_recipe: WriteRecipe) -> None:
    path = write_recipe(SUM)
    run(path)
    assert run(path, every="7").ran == 0


def test_another_seed_runs_everything_again(write_recipe: WriteRecipe) -> None:
    run(write_recipe(SUM))
    assert run(write_recipe(SUM.replace("seed: 3", "seed: 4"))).ran == 3


def test_what_another_recipe_left_is_moved_aside_and_nothing_is_deleted(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = write_recipe(SUM)
    for n in ("1", "2", "1"):
        run(path, n=n)
    kept = sorted((tmp_path / "run" / ".previous").glob("one-*/number.txt"))
    assert sorted(file.read_text() for file in kept) == ["1", "2"]
    assert (tmp_path / "run" / "one" / "number.txt").read_text() == "1"


def test_a_file_that_is_read_counts_by_its_content(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "term").write_text("4")
    text = f"name: r\nstages:\n  sum: {{total: {{terms: [{{file: {tmp_path / 'term'}}}]}}}}\n"
    path = write_recipe(text)
    assert run(path).stages[0].headline == "total 4"
    os.utime(tmp_path / "term", ns=(1, 1))
    assert run(path).ran == 0
    (tmp_path / "term").write_text("6")
    summary = run(path)
    assert (summary.ran, summary.stages[0].headline) == (1, "total 6")


def test_the_record_of_a_stage_says_what_it_was_made_from(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    run(write_recipe(SUM))
    records = {
        name: storage.read_json(str(tmp_path / "run" / name / "stage.json")) for name in ("one", "sum")
    }
    assert records["sum"]["inputs"] == {"one": records["one"]["fingerprint"]}
    assert records["sum"]["recipe"]["stages"]["one"] == {"number": {"value": 1, "log_every": 1}}
    assert records["sum"]["versions"]["pydantic"]
    assert records["sum"]["code"]["version"]


def test_a_folder_without_a_finished_record_is_not_taken_for_whole(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = write_recipe(SUM)
    run(path)
    record = tmp_path / "run" / "one" / "stage.json"
    whole = record.read_text()
    for torn in ("", whole[: len(whole) // 2]):
        record.write_text(torn)
        assert states(run(path))["one"] == "done"
    record.unlink()
    assert states(run(path)) == {"one": "done", "two": "finished earlier", "sum": "finished earlier"}


def test_a_failure_for_the_user_is_one_line(write_recipe: WriteRecipe) -> None:
    path = write_recipe("name: r\nstages:\n  bad: {failing: {how: for the user}}\n")
    with pytest.raises(EspanError) as caught:
        run(path)
    assert str(caught.value) == "stage 'bad': the sky is too low"


def test_an_unexpected_failure_is_one_line_and_its_traceback_lies_beside(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = write_recipe("name: r\nstages:\n  one: {number: {value: 1}}\n  bad: {failing: {}}\n")
    with pytest.raises(EspanError) as caught:
        run(path)
    failure = tmp_path / "run" / "bad" / "failure.txt"
    what = "stage 'bad' failed: ZeroDivisionError: integer division or modulo by zero"
    assert str(caught.value) == f"{what}; details in {failure}"
    assert "Traceback" in failure.read_text()
    assert not (tmp_path / "run" / "bad" / "stage.json").exists()
    assert (tmp_path / "run" / "one" / "stage.json").exists()


def test_a_library_that_exits_inside_a_stage_does_not_pass_for_success(write_recipe: WriteRecipe) -> None:
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        run(write_recipe("name: r\nstages:\n  bad: {failing: {how: exit}}\n"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_from_where_it_was(
    number: signal.Signals, small_stages: Path, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    path = write_recipe(
        f"name: r\nstages:\n  one: {{number: {{value: 1}}}}\n  wait: {{patient: {{file: {go}}}}}\n"
    )
    wait = tmp_path / "run" / "wait"
    with espan(small_stages, "run", path) as process:
        wait_until_there(wait / "attempt-0")
        with pytest.raises(WorkspaceBusyError, match=f"in use by process {process.pid} on"):
            run(path)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        stopped = f"espan: stopped by {number.name}; run the same command again to go on from there"
        assert errors.splitlines()[-1] == stopped
    assert not (wait / "stage.json").exists()
    go.touch()
    assert states(run(path)) == {"one": "finished earlier", "wait": "done"}
    assert (wait / "attempt-1").exists()


def test_the_command_prints_a_table_and_exits_with_0(
    small_stages: Path, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with espan(small_stages, "run", write_recipe(SUM), "--set", "n=4") as process:
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    rows = [line.split() for line in printed.splitlines()]
    assert rows[0] == ["stage", "state", "time", "result"]
    assert rows[3][:3] == ["sum", "(total)", "done"]
    assert rows[3][-2:] == ["total", "4"]
    assert printed.endswith(f"finished in {tmp_path / 'run'}\n")
    assert f"sums: workspace {tmp_path / 'run'}" in errors


def test_a_relative_workspace_lies_below_espan_home(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe("name: r\nworkspace: runs/r\nstages:\n  one: {number: {value: 1}}\n")
    monkeypatch.setenv("ESPAN_HOME", str(tmp_path / "home"))
    assert run(path).workspace == str(tmp_path / "home" / "runs" / "r")
    monkeypatch.delenv("ESPAN_HOME")
    monkeypatch.chdir(tmp_path)
    assert run(path).workspace == str(tmp_path / "runs" / "r")


def test_a_run_in_an_object_store_is_the_same_run(write_recipe: WriteRecipe) -> None:
    place = f"memory://runs-{os.getpid()}/sums"
    path = write_recipe(f"workspace: {place}\n{SUM}")
    assert run(path).ran == 3
    assert run(path).ran == 0
    assert states(run(path, n="8")) == {"one": "done", "two": "finished earlier", "sum": "done"}
    assert json.loads(storage.read_bytes(f"{place}/sum/stage.json"))["result"]["total"] == 8
    assert not storage.exists(f"{place}/.lock.json")
    assert [name for name in storage.glob(f"{place}/.previous") if name.endswith("number.txt")]
