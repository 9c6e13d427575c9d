"""The benchmark of the recurrences: both sides of each are measured, targets are judged."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import recurrence
from benchmarks.recurrence import rows, sides, verdicts
from benchmarks.recurrences import HEADS, RECURRENCES

MAMBA2, DELTA, CHANNELS = RECURRENCES
OUTPUT_BYTES = {MAMBA2.own: 4 * HEADS * 64, DELTA.own: 4 * HEADS * 128, CHANNELS.own: 4 * HEADS * 128}
# Of a token: x, dt, and B and C that the heads share; q and k of half as many heads, v, log decay and beta;
# q, k and log decay per channel, v, beta.
INPUT_BYTES = {
    MAMBA2.own: 4 * (HEADS * 65 + 2 * 128),
    DELTA.own: 4 * HEADS * (2 * 64 + 128 + 2),
    CHANNELS.own: 4 * HEADS * (4 * 128 + 1),
}
STATE_BYTES = {own: size * 128 for own, size in OUTPUT_BYTES.items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    place = tmp_path_factory.mktemp("recurrence") / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        lengths = {"SHORT": 64, "MIDDLE": 128, "LONG": 1100}
        kinds = [replace(kind, peer_length=64) for kind in (MAMBA2, DELTA)]
        lengths["RECURRENCES"] = (*kinds, replace(CHANNELS, peer_length=32))
        for name, value in lengths.items():
            patch.setattr(recurrence, name, value)
        options = ["--repeats", "1", "--seconds", "0", "--threads", "1", "--output", str(place)]
        done = CliRunner().invoke(recurrence.app, options)
    assert done.exit_code == 0, done.output
    return json.loads(place.read_text())


def test_both_sides_of_each_recurrence_are_measured(result):
    assert [(r["length"], r["recurrence"]) for r in result["results"]] == [
        *((64, MAMBA2.own), (64, MAMBA2.peer), (128, MAMBA2.own), (1100, MAMBA2.own)),
        *((64, DELTA.own), (64, DELTA.peer), (128, DELTA.own), (1100, DELTA.own)),
        *((32, CHANNELS.own), (32, CHANNELS.peer)),
        *((64, CHANNELS.own), (128, CHANNELS.own), (1100, CHANNELS.own)),
    ]
    assert set(result["sizes"]) == set(OUTPUT_BYTES)
    for record in result["results"]:
        assert record["seconds"] > 0
        assert record["kept_bytes"] > 0


@pytest.mark.parametrize("own", OUTPUT_BYTES)
def test_the_inputs_the_output_and_every_gradient_count(result, own):
    for record in (r for r in result["results"] if r["recurrence"] == own):
        per_head = 4 * HEADS if own == MAMBA2.own else 0  # A is one number per head
        assert record["input_bytes"] == record["length"] * INPUT_BYTES[own] + per_head
        assert record["peak_bytes"] > record["input_bytes"] + record["length"] * OUTPUT_BYTES[own]


@pytest.mark.parametrize(("own", "segments"), [(MAMBA2.own, 2), (DELTA.own, 3), (CHANNELS.own, 3)])
def test_a_state_is_kept_for_every_segment(result, own, segments):
    kept = {r["length"]: r["kept_bytes"] for r in result["results"] if r["recurrence"] == own}
    assert kept[128] == STATE_BYTES[own]
    assert kept[1100] == segments * STATE_BYTES[own]


def test_lines_are_per_token_and_head(result):
    record = dict(result["results"][0], length=1000, seconds=0.016, kept_bytes=80_000, peak_bytes=8_000_000)
    record["input_bytes"] = 800_000
    (line,) = rows({"results": [record]})
    assert line == ("1,000", MAMBA2.own, "2.00 µs", "10 B", "10%", "1,000 B")


@pytest.mark.parametrize(("ours", "met"), [(1.04, "yes"), (1.06, "no")])
def test_on_a_gpu_an_operator_is_judged_by_the_kernels_that_it_calls(ours, met):
    records = []
    for kind in RECURRENCES:
        operator, alone, chunked = sides(kind, 65_536, "cuda")
        times = {operator: ours, alone: 1.0, chunked: 9.0}
        records += [{"recurrence": own, "length": 65_536, "seconds": time} for own, time in times.items()]
    lines = verdicts({"device": "cuda", "results": records})
    assert [(line[0], line[-1]) for line in lines] == [(kind.own, met) for kind in RECURRENCES]
    assert {line[3] for line in lines} == {f"{ours:.2f}"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_refused(device):
    done = CliRunner().invoke(recurrence.app, ["--device", device])
    assert done.exit_code == 2
    assert device in done.output


@pytest.mark.parametrize("kind", RECURRENCES, ids=lambda kind: kind.own)
@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({}, ["yes", "yes", "yes", "yes"]),
        ({"kept_bytes": 21}, ["no", "yes", "yes", "yes"]),
        ({"peak_bytes": 3501 * 65_536 * HEADS}, ["yes", "no", "yes", "yes"]),
        ({"seconds": 18.0}, ["yes", "yes", "no", "yes"]),
        ({"peer": 0.9}, ["yes", "yes", "yes", "no"]),
    ],
)
def test_targets_are_judged(kind, change, met):
    records = [
        {"recurrence": kind.own, "length": length, "seconds": length / 4096, "kept_bytes": 20}
        | {"input_bytes": 100, "peak_bytes": kind.most_held * length * HEADS}
        | change
        for length in (16_384, 65_536)
    ]
    beside = sorted({4096, kind.peer_length})
    records += [{"recurrence": kind.own, "length": length, "seconds": length / 4096} for length in beside]
    peer_seconds = change.get("peer", 1.0) * kind.peer_length / 4096
    records.append({"recurrence": kind.peer, "length": kind.peer_length, "seconds": peer_seconds})
    lines = verdicts({"results": records})
    assert [line[0] for line in lines] == [kind.own] * 4
    assert [line[-1] for line in lines] == met
