"""The benchmark of the recurrence: both sides are measured, targets are judged."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import recurrence
from benchmarks.recurrence import HEADS, OURS, PEER, rows, verdicts


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    place = tmp_path_factory.mktemp("recurrence") / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHORT": 64, "MIDDLE": 128, "LONG": 2048, "PEER_LENGTHS": (64,)}.items():
            patch.setattr(recurrence, name, value)
        options = ["--repeats", "1", "--seconds", "0", "--threads", "1", "--output", str(place)]
        done = CliRunner().invoke(recurrence.app, options)
    assert done.exit_code == 0, done.output
    return json.loads(place.read_text())


def test_both_recurrences_are_measured(result):
    assert [(r["length"], r["recurrence"]) for r in result["results"]] == [
        (64, OURS),
        (64, PEER),
        (128, OURS),
        (2048, OURS),
    ]
    for record in result["results"]:
        assert record["seconds"] > 0
        # x, dt, and B and C that the heads share; A is one number per head.
        assert record["input_bytes"] == 4 * (record["length"] * (HEADS * 65 + 2 * 128) + HEADS)
        # The output and every gradient are held.
        assert record["peak_bytes"] > record["input_bytes"] + 4 * record["length"] * HEADS * 64


def test_a_state_is_kept_for_every_segment(result):
    states = {r["length"]: r["kept_bytes"] / (4 * HEADS * 64 * 128) for r in result["results"][2:]}
    assert states == {128: 1, 2048: 2}


def test_lines_are_per_token_and_head(result):
    record = dict(result["results"][0], length=1000, seconds=0.016, kept_bytes=80_000, peak_bytes=8_000_000)
    record["input_bytes"] = 800_000
    (line,) = rows({"results": [record]})
    assert line == ("1,000", OURS, "2.00 µs", "10 B", "10%", "1,000 B")


@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({}, ["yes", "yes", "yes"]),
        ({"kept_bytes": 21}, ["no", "yes", "yes"]),
        ({"peak_bytes": 1501 * 65_536 * HEADS}, ["yes", "no", "yes"]),
        ({"seconds": 18.0}, ["yes", "yes", "no"]),
    ],
)
def test_targets_are_judged(change, met):
    records = [
        {"recurrence": OURS, "length": length, "seconds": length / 4096, "kept_bytes": 20, "input_bytes": 100}
        | {"peak_bytes": 1500 * length * HEADS}
        | change
        for length in (16_384, 65_536)
    ]
    short = {"recurrence": OURS, "length": 4096, "seconds": 1.0}
    assert [line[-1] for line in verdicts({"results": [short, *records]})] == met
