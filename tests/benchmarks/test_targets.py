"""Targets are judged from a result, and only from one that measured what they say."""

import pytest

from benchmarks.targets import MEMORY, MET, MISSED, OPEN, SHARE, SPEED_UP, TARGETS, cells, judge, verdicts

CPU = [target for target in TARGETS if target.device == "cpu"]
GPU = [target for target in TARGETS if target.device == "cuda"]


def find(kind, device="cpu", quantity=None):
    return next(
        t for t in TARGETS if t.kind == kind and t.device == device and quantity in (None, t.quantity)
    )


def test_the_bounds_are_the_promised_ones():
    assert [(t.length, t.mode, t.kind, t.bound) for t in TARGETS] == [
        (16_384, "forward_backward", SPEED_UP, 5),
        (65_536, "forward", SPEED_UP, 18),
        (16_384, "forward_backward", MEMORY, 1.15),
        (16_384, "forward_backward", MEMORY, 1.15),
        (16_384, "forward_backward", SHARE, 0.1),
        (65_536, "forward_backward", SHARE, 0.1),
        (131_072, "forward_backward", SPEED_UP, 20),
        (131_072, "forward_backward", MEMORY, 1.03),
        (131_072, "forward_backward", SHARE, 0.1),
    ]


@pytest.mark.parametrize(("seconds", "word"), [(0.125, MET), (0.199, MET), (0.201, MISSED)])
def test_speed_is_the_reference_s_time_over_ours(make_result, make_record, seconds, word):
    rows = [make_record(16_384, "SDPA full", 1.0, 100), make_record(16_384, "SE-Attn sdpa", seconds, 100)]
    verdict = judge(find(SPEED_UP), make_result(rows))
    assert verdict.word == word
    assert verdict.ratio == pytest.approx(1 / seconds)
    assert (verdict.other, verdict.ours) == (pytest.approx(3.0), pytest.approx(3 * seconds))


@pytest.mark.parametrize(("peak", "word"), [(115, MET), (116, MISSED), (50, MET)])
@pytest.mark.parametrize("quantity", ["peak_bytes", "extra_bytes"])
def test_memory_is_ours_over_the_reference_s(make_result, make_record, peak, word, quantity):
    rows = [make_record(16_384, "SDPA full", 1.0, 100), make_record(16_384, "SE-Attn sdpa", 1.0, peak)]
    verdict = judge(find(MEMORY, quantity=quantity), make_result(rows))
    assert verdict.word == word
    assert verdict.ratio == pytest.approx(peak / 100)


@pytest.mark.parametrize(("choice", "word"), [(0.3, MET), (0.31, MISSED)])
def test_the_choice_s_share_is_of_forward_and_backward(make_result, make_record, choice, word):
    more = {"selection": {"seconds": choice, "samples": [choice], "peak_bytes": 1, "extra_bytes": 1}}
    rows = [make_record(131_072, "SE-Attn fused", 1.0, 100, **more)]
    verdict = judge(find(SHARE, "cuda"), make_result(rows, "cuda"))
    assert (verdict.word, verdict.ratio) == (word, pytest.approx(choice / 3))


def test_a_gpu_s_reference_is_the_flash_kernel_and_not_another_that_torch_takes(make_result, make_record):
    full, flash = make_record(131_072, "SDPA full", 10.0, 100), make_record(131_072, "SDPA flash", 19.0, 100)
    ours = make_record(131_072, "SE-Attn fused", 1.0, 100)
    target = find(SPEED_UP, "cuda")
    assert judge(target, make_result([full, flash, ours], "cuda")).ratio == pytest.approx(19)
    assert judge(target, make_result([full, ours], "cuda")).word == OPEN
    taken = make_result([full, ours], "cuda") | {"reference_kernel": "flash"}
    assert judge(target, taken).ratio == pytest.approx(10)


@pytest.mark.parametrize(
    "changes",
    [{"heads": 8}, {"chunk_sizes": [4096]}, {"dtype": "bfloat16"}, {"top_k": 4}, {"device": "cuda"}],
    ids=str,
)
def test_other_numbers_leave_a_target_open(make_result, make_record, changes):
    choice = {"selection": {"seconds": 0.1, "samples": [0.1], "peak_bytes": 1, "extra_bytes": 1}}
    rows = [
        make_record(length, name, 1.0, 100, **(choice if name == "SE-Attn sdpa" else {}))
        for length in (16_384, 65_536)
        for name in ("SDPA full", "SE-Attn sdpa")
    ]
    assert all(judge(target, make_result(rows)).word != OPEN for target in CPU)
    assert all(judge(target, make_result(rows, **changes)).word == OPEN for target in CPU)
    assert all(judge(target, make_result(rows)).word == OPEN for target in GPU)
    assert all(judge(target, None).word == OPEN for target in TARGETS)


def test_a_missing_length_mode_or_row_leaves_a_target_open(make_result, make_record):
    full, ours = make_record(16_384, "SDPA full", 1.0, 100), make_record(16_384, "SE-Attn sdpa", 0.1, 100)
    target = find(SPEED_UP)
    assert judge(target, make_result([full])).word == OPEN
    assert judge(target, make_result([full, {**ours, "length": 8192}])).word == OPEN
    del ours["forward_backward"]
    assert judge(target, make_result([full, ours])).word == OPEN


def test_a_row_shows_both_sides_the_ratio_and_the_verdict(make_result, make_record):
    rows = [make_record(16_384, "SDPA full", 1.0, 2**20), make_record(16_384, "SE-Attn sdpa", 0.1, 2**20)]
    found = verdicts([make_result(rows)])
    assert cells(found[0]) == (
        "CPU", "L = 16,384: SDPA full / SE-Attn sdpa, forward + backward", "3.00 s", "300.0 ms", "10.00",
        "at least 5", "met",
    )  # fmt: skip
    assert cells(found[3])[2:] == ("3.0 MiB", "3.0 MiB", "1.00", "at most 1.15", "met")
    assert cells(found[-1])[2:] == ("", "", "", "at most 10%", OPEN)
