"""What a reader sees of a result: the README's tables and the pictures say what the JSON file says."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import language_model, miniature, recurrence
from benchmarks.context_parallel import OUTPUT
from benchmarks.plots import cost_figure, floor_figure
from benchmarks.readme import (
    BEGIN,
    END,
    README,
    RESULTS,
    newest_results,
    rewrite,
    rewrite_answers,
    rewrite_miniature,
    rewrite_recurrence,
    rewrite_shared,
    section,
)
from benchmarks.targets import TARGETS
from tests.benchmarks.conftest import ROOT


def test_the_readme_is_in_step_with_the_committed_results():
    text = README.read_text()
    assert rewrite(text, RESULTS) == text, "run python -m benchmarks.readme"
    assert rewrite_shared(text, json.loads(OUTPUT.read_text())) == text, "run python -m benchmarks.readme"
    scan = json.loads(recurrence.OUTPUT.read_text())
    assert rewrite_recurrence(text, scan) == text, "run python -m benchmarks.readme"
    answers = json.loads(language_model.OUTPUT.read_text())
    assert rewrite_answers(text, answers) == text, "run python -m benchmarks.readme"
    small = json.loads(miniature.OUTPUT.read_text())
    assert rewrite_miniature(text, small) == text, "run python -m benchmarks.readme"
    for path, result in newest_results(RESULTS):
        assert f"results/{path.name}" in text
        assert result["results"]


def test_without_a_result_every_target_is_open(tmp_path):
    assert section(tmp_path).count("not yet measured") == len(TARGETS)


def test_the_newest_result_of_each_device_is_shown(tmp_path, make_result, make_record):
    rows = [make_record(16_384, "SDPA full", 1.0, 100), make_record(16_384, "SE-Attn sdpa", 0.125, 100)]
    old = make_result([make_record(16_384, "SDPA full", 7.777, 100)])
    new = make_result(rows) | {"measured": "2026-02-03T00:00:00+00:00"}
    new["left_out"] = [
        {"length": length, "attention": "NSA", "reason": "runs on CUDA", "failed": False}
        for length in (8192, 16_384)
    ]
    unknown = make_result(rows) | {"format": "another/1", "measured": "2027-02-03T00:00:00+00:00"}
    for name, result in {
        "cpu-z": old,
        "cpu-b": new,
        "cpu-c": unknown,
        "cuda": make_result([], "cuda"),
    }.items():
        (tmp_path / f"attention-{name}.json").write_text(json.dumps(result))
    text = section(tmp_path)
    assert text.index("a processor, 2 threads") < text.index("### a GPU")
    assert "7,777" not in text
    assert "| 16,384 | SE-Attn sdpa | 125.0 | 0.12 | 800% | 375.0 | 0.12 | 800% |" in text
    assert "3.00 s | 375.0 ms | 8.00 | at least 5 | met |" in text
    assert "- NSA at 8,192, 16,384 tokens: runs on CUDA" in text
    assert "(results/attention-cpu-b-cost.png)" in text
    assert rewrite(f"before {BEGIN} stale {END} after", tmp_path) == f"before {BEGIN}\n{text}\n{END} after"


def test_missing_markers_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="lacks the markers"):
        rewrite(f"no end {BEGIN}", tmp_path)


def test_pictures_lie_beside_the_file_and_have_a_line_for_each_attention(small_run):
    place, _, result = small_run
    for kind in ("cost", "floor"):
        picture = place.with_name(f"attention-cpu-{kind}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000
    names = list(dict.fromkeys(record["attention"] for record in result["results"]))
    for figure in (cost_figure(result), floor_figure(result)):
        for panel in figure.axes:
            assert [line.get_label() for line in panel.lines] == names
    forward = cost_figure(result).axes[0]
    assert (forward.get_xscale(), forward.get_yscale()) == ("log", "log")
    reference = forward.lines[0]
    assert list(reference.get_xdata()) == [20, 50, 90]
    assert list(reference.get_ydata()) == [
        r["forward"]["seconds"] for r in result["results"] if r["attention"] == "SDPA full"
    ]
    assert list(floor_figure(result).axes[1].lines[0].get_ydata()) == pytest.approx([1.0, 1.0])


def test_without_a_gpu_make_gpu_says_so_in_one_line_and_succeeds(tmp_path):
    # An environment that is already installed, so that make runs nothing but the target itself.
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for mark in (".installed", ".installed-dev"):
        (tmp_path / mark).touch()
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "no CUDA device" in done.stdout
