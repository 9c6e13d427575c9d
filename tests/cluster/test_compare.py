"""`espan compare`: tables, files, and one sentence where there is nothing to compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cluster.cli import main
from pipelines.evaluate.scores import Sample, Scores, TaskScore, write_samples
from pipelines.system import storage

Run = Callable[..., tuple[int, str, str]]
HALF = [0.0, 1.0] * 32


def write_evaluation(folder: Path, values: Sequence[float], *, drawn: str = "", task: str = "single") -> str:
    scores = (TaskScore.of("recall", task, 2048, "recall", values),)
    Scores(
        model="tuned", attention={"kind": "full"}, precision="fp32", seed=1, seconds=1, tasks=scores
    ).write(str(folder))
    write_samples(
        str(folder),
        [
            Sample(
                measure="recall", task=task, length=2048, index=index, prompt=f"{index}{drawn}",
                metric="recall", value=value,
            )
            for index, value in enumerate(values)
        ],
    )  # fmt: skip
    return str(folder)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns exit code, standard output and standard error of `espan compare ARGUMENTS`."""

    def compare(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["espan", "compare", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return compare


def test_the_stages_of_a_run_are_compared_with_its_first(compare: Run, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a-before", HALF)
    write_evaluation(tmp_path / "b-after", [1.0] * 64)
    write_evaluation(tmp_path / "c-again", HALF)
    code, printed, errors = compare(str(tmp_path))
    assert (code, errors) == (0, "")
    lines = [line.split() for line in printed.splitlines()]
    after = lines.index(["b-after", "against", "a-before"])
    assert lines[after + 2][:7] == ["recall:", "single", "2,048", "64", "50.0%", "100.0%", "+50.0"]
    assert lines[after + 2][-1] == "better"
    again = lines.index(["c-again", "against", "a-before"])
    assert lines[again + 2][-3:] == ["no", "real", "difference"]
    assert "Holm's correction" in printed
    assert "\x1b" not in printed


def test_the_files_hold_what_the_terminal_shows(compare: Run, tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one" / "scores", HALF, task="a|[b]")
    two = write_evaluation(tmp_path / "two" / "scores", [*HALF[:60], 1.0, 1.0, 1.0, 1.0], task="a|[b]")
    written = tmp_path / "table.md", tmp_path / "table.json"
    code, printed, _ = compare(one, two, "--markdown", str(written[0]), "--json", str(written[1]))
    assert code == 0
    assert "recall: a|[b]" in printed
    markdown = written[0].read_text()
    assert "## two/scores against one/scores" in markdown
    assert "| recall: a/[b] | 2,048 | 64 | 50.0% | 53.1% | +3.1 points |" in markdown
    assert "Holm's correction" in markdown
    found = json.loads(written[1].read_text())
    assert [each["label"] for each in found["evaluations"]] == ["one/scores", "two/scores"]
    (row,) = found["comparisons"][0]["rows"]
    assert row["difference"] == pytest.approx(2 / 64)
    assert row["verdict"] == "no real difference"
    assert row["interval"]["low"] <= 0 < row["interval"]["high"]


def test_prompts_that_differ_are_told(compare: Run, tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", HALF)
    two = write_evaluation(tmp_path / "two", HALF[:60])
    other = write_evaluation(tmp_path / "other", HALF, drawn="else")
    code, printed, _ = compare(one, two, other)
    assert code == 0
    assert "Not compared: 4 prompts that only one of the two has." in printed
    assert "No prompt in common." in printed
    assert "Not compared: 64 prompts that differ between the two" in printed
    code, printed, errors = compare(one, other)
    assert (code, printed) == (1, "")
    assert errors == (
        "espan: one and other share no prompt: 64 prompts at the same place differ (by their seed, tokenizer "
        "or data); evaluate both on the same prompts\n"
    )
    elsewhere = write_evaluation(tmp_path / "elsewhere", HALF, task="multi_key")
    assert "they have no task and length in common" in compare(one, elsewhere)[2]


def test_what_cannot_be_compared_is_one_sentence(compare: Run, tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", HALF)
    empty = tmp_path / "empty"
    empty.mkdir()
    old = Path(write_evaluation(tmp_path / "old", HALF))
    (old / "samples.jsonl").write_text('{"task": "single", "length": 2048, "index": 0, "answers": [true]}\n')
    for arguments, problem in (
        ([str(empty)], f"{empty}: no scores lie here; name a run with a finished evaluate stage"),
        ([str(tmp_path / "nowhere")], f"{tmp_path / 'nowhere'}: no scores lie here"),
        ([one], f"{one} is the only evaluation there; name another run to compare it with"),
        ([one, one], "a run is compared with itself; name each run once"),
        ([one, str(old)], f"{old / 'samples.jsonl'}: does not say which prompts were scored"),
    ):
        code, printed, errors = compare(*arguments)
        assert (code, printed) == (1, "")
        assert errors.startswith(f"espan: {problem}")
        assert errors.count("\n") == 1


def test_runs_are_compared_wherever_they_lie(compare: Run, tmp_path: Path) -> None:
    values = write_evaluation(tmp_path / "one", HALF), write_evaluation(tmp_path / "two", HALF)
    for name, folder in zip(("one", "two"), values, strict=True):
        for file in Path(folder).iterdir():
            storage.write_bytes_atomic(f"memory://runs/{name}/scores/{file.name}", file.read_bytes())
    code, printed, _ = compare("memory://runs/one", "memory://runs/two/scores/")
    assert code == 0
    assert "two/scores against one/scores" in printed
