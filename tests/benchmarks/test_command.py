"""The benchmark runs, says what it measured on, and counts memory and arithmetic right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.attention import FORMAT, app, parse_lengths
from benchmarks.measure import interleaved_seconds, peak_bytes
from benchmarks.peers import Setting, causal_pairs, peers, span_pairs, window_pairs
from se_model.span.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--heads 2 --head-dim 8 --chunk-size 16 --block-size 4 --top-k 2 --repeats 2 --seconds 0".split()


def test_a_run_writes_every_attention_with_its_ratios_and_what_it_ran_on(tmp_path):
    output = tmp_path / "new" / "result.json"
    command = [sys.executable, "-m", "benchmarks.attention", *SMALL, "--lengths", "20,50", "--threads", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["format"] == FORMAT
    assert result["machine"]["threads"] == 1
    assert result["machine"]["cpus"] > 0
    assert result["versions"]["torch"] == torch.__version__
    assert (result["seed"], result["setting"]["chunk_size"], result["setting"]["dtype"]) == (0, 16, "float32")

    names = ["SDPA full", *(f"SE-Attn {name}" for name in BACKENDS), "sliding window", "S2", "no memory"]
    assert [(r["length"], r["attention"]) for r in result["results"]] == [
        (length, name) for length in (20, 50) for name in names
    ]
    for record in result["results"]:
        reference = next(r for r in result["results"] if r["length"] == record["length"])
        assert record["attention"] in done.stdout
        for mode in ("forward", "forward_backward"):
            assert len(record[mode]["samples"]) == 2
            assert min(record[mode]["samples"]) <= record[mode]["seconds"] <= max(record[mode]["samples"])
            # The output; in training the gradients of q, k and v.
            returned = {"forward": 1, "forward_backward": 3}[mode]
            assert record[mode]["peak_bytes"] >= returned * 4 * 2 * 8 * record["length"]
            for quantity in ("seconds", "peak_bytes"):
                share = record[mode][quantity] / reference[mode][quantity]
                assert record["ratios"][f"{mode}_{quantity}"] == pytest.approx(share)
        assert record["ratios"]["flops"] == pytest.approx(record["flops"] / reference["flops"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "20,many"], "not '20,many'"),
        (["--chunk-size", "30", "--block-size", "4"], "chunk_size must be a multiple of block_size 4"),
        (["--heads", "1"], "heads must be at least 2"),
        (["--lenghts", "20"], "No such option: --lenghts"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_measured_is_refused_at_once(options, message, tmp_path):
    done = CliRunner().invoke(app, ["--output", str(tmp_path / "result.json"), *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_lengths_are_read_once_each_in_order():
    assert parse_lengths("8_192, 2048,8192") == [2048, 8192]


def test_peak_memory_is_the_most_held_at_once():
    mebibyte = 2**20

    def call() -> torch.Tensor:
        first = torch.empty(3 * mebibyte, dtype=torch.uint8)
        del first
        second = torch.empty(mebibyte, dtype=torch.uint8)
        return torch.cat([second, second])

    assert peak_bytes(call, "cpu") == 3 * mebibyte
    assert peak_bytes(lambda: None, "cpu") == 0


def test_calls_are_timed_in_turn_and_equally_often_where_time_allows():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    samples = interleaved_seconds(calls, "cpu", repeats=3, seconds=0)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("length", [1, 15, 16, 17, 50, 64])
def test_arithmetic_is_counted_pair_by_pair(length):
    setting = Setting(heads=3, head_dim=8, chunk_size=16, block_size=4, top_k=5, window=7)
    tokens = range(length)
    full = sum(s <= t for t in tokens for s in tokens)
    assert causal_pairs((0, length)) == full
    assert window_pairs(7, length) == sum(t - 7 < s <= t for t in tokens for s in tokens)
    inside = sum(s <= t and s // 16 == t // 16 for t in tokens for s in tokens)
    # Each token of chunk 1 sees 4 blocks, of every later chunk 5, of 4 tokens each.
    retrieved = sum(4 * min(5, 4 * (t // 16)) for t in tokens)
    assert span_pairs(setting, length) == inside + retrieved
    flops = {peer.name: peer.flops for peer in peers(setting, length, "cpu", torch.float32)}
    assert flops["SDPA full"] == 4 * 3 * 8 * full
    assert flops["no memory"] == 4 * 3 * 8 * inside
