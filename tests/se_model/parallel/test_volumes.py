"""Layers exchange what the formulas say of their numbers."""

from __future__ import annotations

import pytest

from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, SlidingWindowConfig
from se_model.parallel.attention import PARALLEL_ATTENTION
from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    convolution,
    full_attention,
    selective_scan,
    span_attention,
    state_space,
    window_attention,
)
from se_model.parallel.volumes import (
    ATTENTION,
    CONVOLUTIONS,
    STATES,
    attention_exchange,
    mamba2_exchange,
    selective_scan_exchange,
)
from se_model.recurrence import Mamba2Sizes, SelectiveScanSizes
from se_model.span import SpanConfig

SHARE = Share(ranks=4, rows=2, tokens=256, itemsize=2, packed=True)
HEADS = Heads(query=4, key_value=2, size=16)
SPAN = {"chunk_sizes": (16, 32), "block_size": 4, "top_k": 3}


def span(chunk_size: int, **options: object) -> Volume:
    return span_attention(SHARE, HEADS, chunk_size=chunk_size, block_size=4, top_k=3, **options)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FullConfig(), full_attention(SHARE, HEADS)),
        (SlidingWindowConfig(9), window_attention(SHARE, HEADS, 9)),
        (NoMemoryConfig(chunk_sizes=(8, 32)), window_attention(SHARE, HEADS, 32)),
        (SpanConfig(**SPAN, rule="paper"), max(span(16), span(32), key=lambda each: each.total)),
        (
            SpanConfig(**SPAN),
            max(
                (span(size, summary="representative_keys", sums=False) for size in (16, 32)),
                key=lambda each: each.total,
            ),
        ),
        (
            SpanConfig(**SPAN, selection="causal", rule="paper"),
            max((span(size, refresh=4) for size in (16, 32)), key=lambda each: each.total),
        ),
        (
            SpanConfig(**SPAN, selection="causal", refresh=8, summary="mean_key", relevancy="max"),
            max(
                (span(size, refresh=8, summary="mean_key", sums=False) for size in (16, 32)),
                key=lambda each: each.total,
            ),
        ),
    ],
)
def test_attention_of_every_kind_that_can_share_rows(config: AttentionConfig, expected: Volume) -> None:
    assert config.kind in PARALLEL_ATTENTION
    assert attention_exchange(config, HEADS, SHARE) == {ATTENTION: expected}


def test_mamba2_exchanges_inputs_of_its_convolution_and_states() -> None:
    sizes = Mamba2Sizes(heads=6, head_size=8, groups=2, state_size=16, kernel=4, chunk_size=64)
    assert (sizes.inner, sizes.group_width, sizes.channels) == (48, 32, 112)
    assert mamba2_exchange(sizes, SHARE) == {
        CONVOLUTIONS: convolution(SHARE, channels=112, kernel=4),
        STATES: state_space(SHARE, heads=6, head_size=8, state_size=16),
    }


def test_mamba1_exchanges_inputs_of_its_convolution_and_states() -> None:
    sizes = SelectiveScanSizes(channels=48, groups=2, state_size=16, kernel=4)
    assert selective_scan_exchange(sizes, SHARE) == {
        CONVOLUTIONS: convolution(SHARE, channels=48, kernel=4),
        STATES: selective_scan(SHARE, channels=48, state_size=16),
    }
