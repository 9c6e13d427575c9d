"""What does not fit together is refused before anything is computed, in one clear line."""

import re
from dataclasses import replace

import pytest
import torch

from se_model.span import SpanConfig, se_attention, select_blocks
from se_model.span.options import SpanOptions
from se_model.span.protocol import Attention
from se_model.span.rules import DEFAULT
from tests.tolerances import F64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_sizes": 100}, "chunk_size must be a multiple of block_size 32, not 100"),
        ({"chunk_sizes": (64, 80)}, "multiple of block_size 32, not 80"),
        ({"chunk_sizes": ()}, "one or more sizes"),
        ({"chunk_sizes": (0, 64)}, "one or more sizes of at least 1"),
        ({"chunk_sizes": 64, "block_size": 0}, "block_size must be at least 1"),
        ({"chunk_sizes": 64, "top_k": -1}, "top_k must be 0 or more"),
        (
            {"chunk_sizes": 64, "summary": "mean"},
            "summary must be one of attention, mean_key, key_bounds, representative_keys; not 'mean'",
        ),
        ({"chunk_sizes": 64, "selection": "causl"}, "selection must be one of chunk, causal; not 'causl'"),
        (
            {"chunk_sizes": 64, "backend": "fast"},
            "backend must be auto or one of fused, flash, sdpa, naive; not 'fast'",
        ),
        ({"chunk_sizes": 64, "refresh": 8}, 'refresh needs selection="causal"'),
        ({"chunk_sizes": 64, "selection": "causal", "refresh": 24}, "refresh must divide chunk_size 64"),
        ({"chunk_sizes": 64, "selection": "causal", "refresh": 0}, "refresh must divide chunk_size 64"),
        ({"chunk_sizes": 64, "decoding": "fast"}, "decoding must be one of full, span; not 'fast'"),
        ({"chunk_sizes": 64, "decoding": "span"}, 'decoding="span" needs selection="causal"'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpanConfig(**options)


def test_a_config_is_immutable_and_takes_one_size_or_several():
    assert SpanConfig(chunk_sizes=64) == SpanConfig(chunk_sizes=[64])
    assert hash(SpanConfig(chunk_sizes=[64, 128])) == hash(SpanConfig(chunk_sizes=(64, 128)))
    with pytest.raises(AttributeError):
        SpanConfig().top_k = 3


def test_the_scale_is_the_one_given_or_that_of_the_head_dimension():
    assert SpanOptions(64, 32, 8).scale_for(16) == 0.25
    assert SpanOptions(64, 32, 8, scale=0.7).scale_for(16) == 0.7
    assert SpanConfig(chunk_sizes=64).options(layer=0, step=0, scale=0.7).scale_for(16) == 0.7


def test_bind_passes_every_option_on(draw):
    inputs = draw(100)
    config = SpanConfig(
        chunk_sizes=20,
        block_size=5,
        top_k=2,
        summary="mean_key",
        relevancy="max",
        queries={"stride": 3},
        selection="causal",
        refresh=10,
        backend="naive",
    )
    attention: Attention = config.bind(layer=1, step=2)
    cu_seqlens = torch.tensor([0, 70, 100])
    expected = se_attention(
        *inputs, chunk_size=20, block_size=5, top_k=2, summary="mean_key", relevancy="max",
        queries={"stride": 3}, selection="causal", refresh=10, backend="naive", scale=0.3,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip
    assert torch.equal(attention(*inputs, scale=0.3, cu_seqlens=cu_seqlens), expected)


def test_a_rule_names_the_three_words_of_the_choice():
    paper = SpanConfig(chunk_sizes=64, summary="attention", relevancy="sum", queries="all")
    assert SpanConfig(chunk_sizes=64, rule="paper") == paper
    assert SpanConfig(chunk_sizes=64, rule="default") == SpanConfig(chunk_sizes=64) != paper
    mixed = SpanConfig(chunk_sizes=64, summary="mean_key", queries={"stride": 4})
    assert (mixed.summary, mixed.relevancy, mixed.queries) == ("mean_key", DEFAULT.relevancy, ("stride", 4))
    assert replace(mixed, top_k=3).queries == mixed.queries


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rule": "papers"}, "rule must be one of paper, default; not 'papers'"),
        (
            {"rule": "paper", "summary": "mean_key"},
            "rule 'paper' says what summary, relevancy and",
        ),
        ({"relevancy": "mean"}, "relevancy must be one of sum, mass, max, peak; not 'mean'"),
        ({"queries": "some"}, 'queries must be "all", {"representative": r} or {"stride": n}; not \'some\''),
        ({"queries": {"all": 1, "stride": 2}}, "queries must be"),
        ({"queries": {"first": 2}}, "queries must be"),
        ({"queries": {"stride": 0}}, "queries: stride must be a whole number of 1 or more, not 0"),
        ({"queries": {"representative": 1.5}}, "queries: representative must be a whole number"),
        ({"queries": {"stride": True}}, "queries: stride must be a whole number of 1 or more, not True"),
    ],
)
def test_impossible_rules_are_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SpanConfig(chunk_sizes=64, **words)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 9, 8), (1, 3, 9, 8), (1, 3, 9, 8)), "must divide the number of query heads"),
        (((1, 4, 9, 8), (1, 2, 7, 8), (1, 2, 7, 8)), "must be equally long"),
        (((1, 4, 9, 8), (1, 2, 9, 8), (1, 2, 7, 8)), r"k \[B, G, L, D\] and v \[B, G, L, Dv\]"),
        (((1, 4, 9, 8), (1, 2, 9, 8), (1, 2, 9)), r"k \[B, G, L, D\] and v \[B, G, L, Dv\]"),
        (((1, 4, 9, 8), (1, 2, 9, 4), (1, 2, 9, 8)), "agree in batch size and head dimension"),
        (((2, 4, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8)), "agree in batch size"),
        (((1, 4, 0, 8), (1, 2, 0, 8), (1, 2, 0, 8)), "at least one token"),
        (((4, 9, 8), (4, 9, 8), (4, 9, 8)), r"takes q \[B, H, L, D\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        se_attention(*(torch.zeros(shape) for shape in shapes), chunk_size=4, block_size=2)


def test_mixed_dtypes_are_named():
    q = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match=r"torch.float32 on cpu, torch.float64 on cpu"):
        se_attention(q, q.double(), q.double(), chunk_size=4, block_size=2)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[-1, -1], [0, 4], [0, 1]], "whole blocks of its document that lie before its chunk"),
        ([[0, -1], [0, 1], [0, 1]], "whole blocks of its document that lie before its chunk"),
        ([[-1, -1], [1, 0], [0, 1]], "ascending, then -1"),
        ([[-1, -1], [1, 1], [0, 1]], "ascending, then -1"),
        ([[-1, -1], [-1, 1], [0, 1]], "ascending, then -1"),
        ([[-1, -1], [0, 1]], r"with B, G, T = \[1, 1, 3\]"),
    ],
)
def test_a_given_choice_is_checked(blocks, message):
    x = torch.randn(1, 1, 40, 4)
    with pytest.raises(ValueError, match=message):
        se_attention(x, x, x, chunk_size=16, block_size=4, blocks=torch.tensor([[blocks]]))


def test_a_given_choice_names_equally_many_blocks_for_every_head():
    x = torch.randn(1, 2, 20, 4)
    blocks = torch.tensor([[[[-1], [0]], [[-1], [-1]]]])
    with pytest.raises(ValueError, match="equally many"):
        se_attention(x, x, x, chunk_size=16, block_size=4, blocks=blocks)


def test_a_given_choice_may_leave_slots_empty(draw, assert_same):
    inputs = draw(53)
    options = {"chunk_size": 16, "block_size": 4, "top_k": 3}
    blocks = select_blocks(*inputs, **options)
    blocks[:, :, 2] = torch.tensor([5, -1, -1])
    oracle = se_attention(*inputs, **options, blocks=blocks, backend="naive")
    assert_same(se_attention(*inputs, **options, blocks=blocks, backend="sdpa"), oracle, inputs, F64)
