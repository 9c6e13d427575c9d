"""The benchmark of context parallelism: counts agree with the formulas, targets are judged."""

import copy

import pytest

from benchmarks.context_parallel import rows, run, verdicts
from benchmarks.exchanges import OURS, Layers

LAYERS = Layers(
    heads=4, kv_heads=4, head_dim=8, chunk_size=64, block_size=8, top_k=1, state_heads=2, state_head_size=4,
    state_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return run(LAYERS, (2, 4), (256,), tokens=64, repeats=2, seed=0)


def test_designs_that_do_not_depend_on_data_exchange_what_the_formulas_say(result):
    for one in result["results"]:
        for direction in ("forward", "backward"):
            bytes_ = one[direction]
            if one["design"] in OURS:
                assert 0 < bytes_["mean"] <= bytes_["formula"]
            else:
                assert bytes_["mean"] == bytes_["most"] == bytes_["formula"], one


def test_summaries_and_sums_are_what_the_formula_says(result):
    # Four keys of each of 4 key/value heads and nothing else, or a summary and a sum for each query head.
    numbers = {
        "SE-Attn": lambda own: own // 8 * 4,
        "SE-Attn, paper's choice": lambda own: own // 8 + own // 64,
    }
    for one in (one for one in result["results"] if one["design"] in OURS):
        ranks, own = one["ranks"], 256 // one["ranks"]
        (summaries,) = (each for each in one["purposes"] if each["purpose"] == "summaries")
        assert summaries["received"] == (ranks - 1) * numbers[one["design"]](own) * 4 * 8 * 4


def test_every_design_has_a_row_and_a_share_of_ring(result):
    shown = rows(result)
    assert [(row[0], row[2]) for row in shown if row[2] in ("SE-Attn", "Ulysses")] == [
        (ranks, design) for ranks in ("2", "4") for design in ("SE-Attn", "Ulysses")
    ]
    assert {row[5] for row in shown if row[2] == "ring"} == {"1.000"}


def test_targets_are_judged_by_the_most_ranks(result):
    assert "(target 1/8: met)" in verdicts(result)[0]
    worse = copy.deepcopy(result)
    for one in worse["results"]:
        if one["design"] == "SE-Attn" and one["ranks"] == 4:
            one["forward"]["mean"] *= 100
    assert "(target 1/8: missed)" in verdicts(worse)[0]
