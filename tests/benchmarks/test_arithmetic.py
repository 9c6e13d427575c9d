"""Arithmetic is counted as the definitions say, pair by pair, and the floor follows from it."""

from dataclasses import replace

import pytest
import torch

from benchmarks.arithmetic import (
    causal_pairs,
    choice_flops,
    moba_pairs,
    nsa_pairs,
    span_pairs,
    training_flops,
    window_pairs,
)
from benchmarks.peers import Peer, own_peers
from benchmarks.records import floor_share
from benchmarks.settings import PRESETS, Setting
from se_model.span import SpanConfig
from se_model.span.options import SpanOptions
from se_model.span.rules import QuerySample


@pytest.mark.parametrize("length", [1, 15, 16, 17, 50, 64])
def test_pairs_are_counted_one_by_one(length):
    setting = Setting(heads=3, head_dim=8, chunk_sizes=(16,), block_size=4, top_k=5, window=7)
    tokens = range(length)
    full = sum(s <= t for t in tokens for s in tokens)
    assert causal_pairs((0, length)) == full
    assert window_pairs(7, length) == sum(t - 7 < s <= t for t in tokens for s in tokens)
    inside = sum(s <= t and s // 16 == t // 16 for t in tokens for s in tokens)
    # Each token of chunk 1 sees 4 blocks, of every later chunk 5, of 4 tokens each.
    retrieved = sum(4 * min(5, 4 * (t // 16)) for t in tokens)
    assert span_pairs(setting, 16, length) == inside + retrieved
    own = sum(s <= t and s // 8 == t // 8 for t in tokens for s in tokens)
    assert moba_pairs(8, 3, length) == own + sum(8 * min(2, t // 8) for t in tokens)
    summaries = sum((t + 1) // 8 for t in tokens)
    assert nsa_pairs(8, 3, 7, length) == summaries + moba_pairs(8, 3, length) + window_pairs(7, length)
    found = own_peers(setting, length, "cpu", torch.float32)
    flops = {peer.name: peer.flops for peer in found if isinstance(peer, Peer)}
    assert flops["no memory"] == 4 * 3 * 8 * inside
    assert flops["SE-Attn naive"] == 4 * 3 * 8 * (inside + retrieved)


@pytest.mark.parametrize("refresh", [16, 4])
def test_a_choice_costs_its_summaries_sums_and_products(refresh):
    setting = Setting(heads=3, head_dim=8, chunk_sizes=(16,), block_size=4, top_k=5)
    candidates = [4 * (first // 16) for first in range(0, 50, refresh)]
    expected = 12 * 4 * 4 * 4 * 8 + 50 * 8 + sum(candidates) * 2 * 8
    words = {"selection": "chunk"} if refresh == 16 else {"selection": "causal", "refresh": refresh}
    assert choice_flops(setting, SpanOptions(16, 4, 5, **words), 50) == 3 * expected
    # Bounds: each of 12 blocks' numbers twice; two products with each judge, of which the last choice has 2.
    judges = [min(3, 50 - first, refresh) for first in range(0, 50, refresh)]
    bounds = 12 * 4 * 8 * 2 + 4 * 50 * 8
    products = sum(4 * 8 * few * many for few, many in zip(judges, candidates, strict=True))
    options = SpanOptions(
        16, 4, 5, "key_bounds", **words, relevancy="mass", queries=QuerySample("representative", 3)
    )
    assert choice_flops(setting, options, 50) == 3 * (bounds + products)
    # Four keys of each block: their distances, and four products in place of two.
    keys = replace(options, summary="representative_keys")
    assert choice_flops(setting, keys, 50) == 3 * (12 * 4 * 8 * 4 + 4 * 50 * 8 + 2 * products)
    assert choice_flops(Setting(top_k=0), options, 9000) == 0


def test_the_targets_stand_on_these_flop_ratios():
    small, paper = PRESETS["small"].setting, PRESETS["paper"].setting

    def ratio(setting, length, training):
        full = causal_pairs((0, length)) * 4 * setting.heads * setting.head_dim
        costs = []
        for size in setting.chunk_sizes:
            pairs = span_pairs(setting, size, length) * 4 * setting.heads * setting.head_dim
            choice = choice_flops(setting, SpanConfig(chunk_sizes=size).options_of(size), length)
            costs.append(training_flops(pairs, choice) if training else pairs + choice)
        return (training_flops(full, 0) if training else full) * len(costs) / sum(costs)

    assert ratio(small, 16_384, training=True) == pytest.approx(6.4, rel=0.03)
    assert ratio(small, 65_536, training=False) == pytest.approx(25.6, rel=0.03)
    assert ratio(paper, 131_072, training=True) == pytest.approx(36, rel=0.05)


def test_the_floor_is_the_arithmetic_at_the_rate_of_the_reference(make_record):
    reference = make_record(100, "SDPA full", 1.0, 1)
    quarter = {**make_record(100, "SE-Attn sdpa", 0.5, 1), "flops": 200, "choice_flops": 50}
    records = [reference, quarter]
    assert floor_share(records, reference, "forward") == 1
    assert floor_share(records, quarter, "forward") == pytest.approx(0.25 / 0.5)
    # 3 s for 3500 operations; the choice of blocks has no backward pass.
    assert floor_share(records, quarter, "forward_backward") == pytest.approx(3 * 750 / 3500 / 1.5)
    longer = {**make_record(400, "SE-Attn sdpa", 2.0, 1), "flops": 1000}
    assert floor_share([*records, longer], longer, "forward") == pytest.approx(0.5)
    assert floor_share([longer], longer, "forward") is None
