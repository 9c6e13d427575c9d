"""What is left out is left out for a reason that is true, and said."""

import pytest
import torch

from benchmarks import records, run
from benchmarks.libraries import REFERENCE, _build, _nsa_refusal, library_peers
from benchmarks.limits import Limits, input_bytes, output_bytes
from benchmarks.peers import LeftOut, Peer, own_peers
from benchmarks.records import MODES, measure
from benchmarks.run import EVERYTHING, Plan, own_failures
from benchmarks.settings import Setting

SMALL = Setting(heads=4, kv_heads=2, head_dim=8, chunk_sizes=(16,), block_size=4, top_k=2)
GIB = 2**30


def plan(**changes):
    given = {
        "setting": SMALL, "lengths": (20, 40), "forward_lengths": (), "device": "cpu", "dtype": "float32",
        "seed": 0, "repeats": 1, "seconds": 0.0, "limit": 60.0,
    }  # fmt: skip
    return Plan(**(given | changes))


def measured(peers, limits, length=32):
    return measure(
        peers, SMALL, length, "cpu", torch.float32, 0, modes=MODES, repeats=1, seconds=0, limits=limits
    )


def test_inputs_and_outputs_are_counted_in_bytes():
    row = 100 * 8 * 4
    assert input_bytes(SMALL, 100, torch.float32) == row * (4 + 2 + 2 + 4)
    assert output_bytes(SMALL, 100, torch.float32, "forward") == row * 4
    assert output_bytes(SMALL, 100, torch.float32, "forward_backward") == row * (4 + 4 + 2 + 2)


def test_a_call_is_too_slow_if_its_arithmetic_at_its_last_rate_is():
    limits = Limits(10, GIB)
    assert limits.too_slow("a", "forward", 1e9) is None
    limits.note("a", "forward", 100, 2048, 1.0)
    assert limits.too_slow("a", "forward", 999) is None
    assert (
        limits.too_slow("a", "forward", 1600)
        == "about 16 s a call, judged by 2,048 tokens; the limit is 10 s"
    )
    assert limits.too_slow("a", "forward_backward", 1600) is None


def test_a_length_that_does_not_fit_is_left_out_whole(monkeypatch):
    needed = input_bytes(SMALL, 40, torch.float32) + output_bytes(SMALL, 40, torch.float32, "forward")
    monkeypatch.setattr(run, "free_bytes", lambda device: needed)
    *_, result = run.run(plan(), lambda text: None)
    assert {record["length"] for record in result["results"]} == {20}
    out = [one for one in result["left_out"] if one["length"] == 40]
    assert [(one["attention"], one["failed"]) for one in out] == [(EVERYTHING, False)]
    assert "of memory" in out[0]["reason"]


def test_stored_scores_that_do_not_fit_leave_out_that_attention_alone():
    attend = lambda q, k, v: q + k.sum() + v.sum()  # noqa: E731
    peers = [Peer(REFERENCE, (attend,), 1), Peer("scores", (attend,), 1, score_bytes=2 * GIB)]
    found, out = measured(peers, Limits(60, GIB))
    assert [record["attention"] for record in found] == [REFERENCE]
    assert [one.name for one in out] == ["scores"] * 2
    assert out[0].reason == "forward: needs about 2.0 GiB of memory; 1.0 GiB are free"


def test_a_slow_reference_is_left_out_and_the_others_have_no_time_ratio_but_a_floor():
    attend = lambda q, k, v: q + k.sum() + v.sum()  # noqa: E731
    limits = Limits(5, GIB)
    early, _ = measured([Peer(REFERENCE, (attend,), 100), Peer("fast", (attend,), 10)], limits)
    limits.note(REFERENCE, "forward", 100, 32, 4.0)
    limits.note(REFERENCE, "forward_backward", 350, 32, 4.0)
    late, out = measured([Peer(REFERENCE, (attend,), 400), Peer("fast", (attend,), 20)], limits, 64)
    assert [record["attention"] for record in late] == ["fast"]
    assert late[0]["ratios"] == {"flops": 0.05}
    assert [(one.name, one.failed) for one in out] == [(REFERENCE, False)] * 2
    assert records.floor_share([*early, *late], late[0], "forward") > 0


def test_what_raises_is_written_down_and_the_rest_still_measured():
    def broken(q, k, v):
        raise RuntimeError("no kernel image\nis available")

    def full(q, k, v):
        raise torch.OutOfMemoryError("CUDA out of memory")

    attend = lambda q, k, v: q + k.sum() + v.sum()  # noqa: E731
    peers = [Peer(REFERENCE, (attend,), 1), Peer("SE-Attn new", (broken,), 1), Peer("MoBA", (full,), 1)]
    found, out = measured(peers, Limits(60, GIB))
    assert [record["attention"] for record in found] == [REFERENCE]
    forward = [one for one in out if one.reason.startswith("forward:")]
    assert forward == [
        LeftOut("SE-Attn new", "forward: failed: RuntimeError: no kernel image", failed=True),
        LeftOut("MoBA", "forward: out of memory"),
    ]


def test_a_failure_of_ours_is_told_from_a_library_s():
    one = {"length": 8, "reason": "forward: failed: KeyError: 1", "failed": True}
    out = [{**one, "attention": name} for name in ("SE-Attn fused", "NSA", "SDPA full")]
    assert own_failures({"left_out": out}) == [
        "SE-Attn fused at 8 tokens: forward: failed: KeyError: 1",
        "SDPA full at 8 tokens: forward: failed: KeyError: 1",
    ]
    assert own_failures({"left_out": [{**out[0], "failed": False}]}) == []


@pytest.mark.parametrize(
    ("heads", "groups", "reason"),
    [(30, 30, "16 or more"), (48, 2, "power of two"), (32, 2, None), (16, 1, None)],
)
def test_nsa_needs_large_groups_of_query_heads(heads, groups, reason):
    found = _nsa_refusal(Setting(heads=heads, kv_heads=groups))
    assert (found is None) if reason is None else (reason in found)


def test_a_package_that_does_not_load_is_left_out_with_its_error():
    def build(setting, length):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    reason = "preparing: failed: ImportError: libcudart.so.12: cannot open shared object file"
    assert _build("MoBA", build, SMALL, 20) == LeftOut("MoBA", reason, failed=True)


def test_a_backend_that_refuses_is_left_out_in_its_own_words():
    found = [one for one in own_peers(SMALL, 4096, "cpu", torch.complex64) if isinstance(one, LeftOut)]
    reasons = {one.name: one.reason for one in found}
    assert reasons["SE-Attn sdpa"] == "does not take torch.complex64"
    # Triton's interpreter, in which tests run its kernels, is no backend to be timed.
    assert reasons["SE-Attn fused"] == "runs on cuda, not on cpu"
    assert not any(one.failed for one in found)


def test_scores_are_stored_only_where_they_are_few():
    for length, measured_there in ((8192, True), (16_384, False)):
        found = library_peers(Setting(), length, "cpu", torch.float32)
        math = next(one for one in found if one.name == "SDPA math")
        assert isinstance(math, Peer) == measured_there
    assert math.reason == "stores every score: about 16.0 GiB"


def test_torch_s_own_kernel_is_not_measured_twice():
    names = [peer.name for peer in library_peers(SMALL, 20, "cpu", torch.float32)]
    assert "SDPA flash" not in names
    assert {"SDPA math", "SDPA cuDNN", "SDPA efficient"} <= set(names)
