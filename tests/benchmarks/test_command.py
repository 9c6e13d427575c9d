"""The benchmark runs as typed, writes what it measured and what it left out, and refuses what it cannot."""

import json
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import measure as timing
from benchmarks.command import PresetName, app, parse_tokens
from benchmarks.libraries import REFERENCE
from benchmarks.limits import Limits
from benchmarks.peers import ORACLE, Peer, own_peers
from benchmarks.records import measure
from benchmarks.run import FORMAT
from benchmarks.settings import PRESETS, Setting
from benchmarks.targets import TARGETS
from se_model.span.backends import BACKENDS


def test_a_run_writes_every_attention_with_its_ratios_and_what_it_ran_on(small_run):
    _, done, result = small_run
    assert result["format"] == FORMAT
    assert result["machine"]["threads"] == 1
    assert result["machine"]["cpus"] > 0
    assert result["versions"]["torch"] == torch.__version__
    assert (result["seed"], result["setting"]["chunk_sizes"], result["setting"]["dtype"]) == (
        0,
        [16],
        "float32",
    )
    assert result["setting"]["window"] == 16
    assert result["reference_kernel"] == "flash"

    backends = {f"SE-Attn {name}{end}" for name in BACKENDS for end in ("", ", causal", ", paper's choice")}
    kernels = {"SDPA full", "SDPA cuDNN", "SDPA efficient", "SDPA math"}
    packages = {"flash-attn", "MoBA", "NSA", "sliding window, flash-attn", "sliding window, flex_attention"}
    everything = backends | kernels | packages | {"sliding window", "S2", "no memory"}
    for length in (20, 50, 90):
        measured = [r["attention"] for r in result["results"] if r["length"] == length]
        left_out = {one["attention"]: one["reason"] for one in result["left_out"] if one["length"] == length}
        assert measured[0] == "SDPA full"
        assert len(measured) == len(set(measured))
        assert set(measured) | set(left_out) == everything
        assert {"SE-Attn sdpa", "SE-Attn naive", "SE-Attn naive, causal", "SDPA math"} <= set(measured)
        assert "No viable backend" in left_out["SDPA cuDNN"]
        assert left_out["NSA"] == "runs on CUDA"
        together = "sliding window, flex_attention; flash-attn; sliding window, flash-attn; MoBA; NSA"
        printed = " ".join(done.stdout.split())
        assert f"left out: {together} at 20, 50, 90 tokens: {left_out['NSA']}" in printed


def test_every_number_is_one_call_s_and_every_ratio_the_reference_s(small_run):
    _, done, result = small_run
    for record in result["results"]:
        reference = next(r for r in result["results"] if r["length"] == record["length"])
        assert record["attention"] in done.stdout
        modes = ["forward", "forward_backward"] if record["length"] < 90 else ["forward"]
        assert ("forward_backward" in record) == (len(modes) == 2)
        for mode in modes:
            assert len(record[mode]["samples"]) == 2
            assert min(record[mode]["samples"]) <= record[mode]["seconds"] <= max(record[mode]["samples"])
            # The output; in training also the gradients of q, k and v.
            outputs = {"forward": 1, "forward_backward": 4}[mode] * 4 * 2 * 8 * record["length"]
            assert record[mode]["extra_bytes"] == record[mode]["peak_bytes"] - outputs
            assert record[mode]["peak_bytes"] >= 0.75 * outputs
            for quantity in ("seconds", "peak_bytes"):
                share = record[mode][quantity] / reference[mode][quantity]
                assert record["ratios"][f"{mode}_{quantity}"] == pytest.approx(share)
        needed = (record["flops"] + record["choice_flops"]) / reference["flops"]
        assert record["ratios"]["flops"] == pytest.approx(needed)


def test_the_choice_of_blocks_is_measured_apart_and_as_a_share(small_run):
    _, _, result = small_run
    for record in result["results"]:
        assert ("selection" in record) == record["attention"].startswith("SE-Attn")
        for mode in ("forward", "forward_backward"):
            if mode in record and "selection" in record:
                share = record["selection"]["seconds"] / record[mode]["seconds"]
                assert record["selection"][f"share_of_{mode}"] == pytest.approx(share)


def test_a_run_ends_with_the_table_of_targets(small_run):
    _, done, _ = small_run
    table = done.stdout[done.stdout.index(" Targets ") :]
    assert table.count("not yet measured") == len(TARGETS)
    assert "SE-Attn fused" in table
    assert "at least 18" in table


def test_several_chunk_sizes_are_run_in_turn_and_counted_as_calls(tmp_path):
    output = tmp_path / "result.json"
    options = "--heads 4 --kv-heads 2 --head-dim 8 --chunk-sizes 16,32 --block-size 4 --top-k 1 --lengths 64"
    quick = ["--repeats", "1", "--seconds", "0", "--threads", "1", "--output", str(output)]
    done = CliRunner().invoke(app, [*options.split(), *quick])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "result-cost.png").stat().st_size > 10_000
    result = json.loads(output.read_text())
    assert (result["setting"]["chunk_sizes"], result["setting"]["kv_heads"]) == ([16, 32], 2)
    assert result["setting"]["window"] == 32
    # The mean of the two: every token sees those before it in its chunk, and later chunks one block.
    alone = next(record for record in result["results"] if record["attention"] == "no memory")
    assert alone["flops"] == 4 * 4 * 8 * (4 * 16 * 17 // 2 + 2 * 32 * 33 // 2) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "20,many"], "not '20,many'"),
        (["--chunk-sizes", "30", "--block-size", "4"], "chunk_size must be a multiple of block_size 4"),
        (["--heads", "1"], "heads must be at least 2"),
        (["--kv-heads", "3"], "kv_heads must divide heads 4"),
        (["--lenghts", "20"], "No such option: --lenghts"),
        (["--preset", "big"], "'big' is not one of"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_measured_is_refused_at_once(options, message, tmp_path):
    done = CliRunner().invoke(app, ["--output", str(tmp_path / "result.json"), *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_numbers_of_tokens_are_read_once_each_in_order():
    assert parse_tokens("8_192, 2048,8192") == (2048, 8192)


def test_presets_have_a_name_on_the_command_line_and_the_paper_s_its_numbers():
    assert [str(name) for name in PresetName] == list(PRESETS)
    paper = PRESETS["paper"]
    assert paper.setting == Setting(30, 30, 128, (2048, 4096), 32, 8, 4096)
    assert (paper.lengths[0], paper.lengths[-1]) == (2048, 1_048_576)
    # Whatever a target needs, some preset measures.
    for target in TARGETS:
        preset = PRESETS[target.setting]
        lengths = preset.lengths + (preset.forward_lengths if target.mode == "forward" else ())
        assert target.length in lengths


@pytest.mark.parametrize(("preset", "length", "measured"), [
    ("small", 2048, True), ("small", 4096, False), ("paper", 2048, False),
])  # fmt: skip
def test_the_oracle_is_a_backend_that_is_measured_where_that_takes_seconds(preset, length, measured):
    assert ORACLE in BACKENDS
    found = own_peers(PRESETS[preset].setting, length, "cpu", torch.float32)
    (oracle,) = (one for one in found if one.name == f"SE-Attn {ORACLE}")
    assert isinstance(oracle, Peer) == measured


def test_one_call_runs_every_chunk_size_and_counts_as_so_many(monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "seconds_of", lambda call, device: 8.0 if call() is None else 0.0)

    def attend(name, q, k, v):
        calls.append(name)
        return q * k * v

    peer = Peer(REFERENCE, tuple(partial(attend, name) for name in "ab"), 1)
    setting = Setting(heads=2, head_dim=8, chunk_sizes=(16, 32), block_size=4)
    (record,), _ = measure(
        [peer], setting, 40, "cpu", torch.float32, 0, modes=("forward",), repeats=2, seconds=0,
        limits=Limits(60, 2**30),
    )  # fmt: skip
    assert calls == ["a", "b"] * 3  # one round to warm up and to find the memory
    assert record["forward"]["samples"] == [4.0, 4.0]
