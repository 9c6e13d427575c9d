"""What the layers that exist here exchange with other ranks, by purpose; the arithmetic is `formula.py`'s."""

from __future__ import annotations

from se_model.baselines import FullConfig, NoMemoryConfig, SlidingWindowConfig
from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    convolution,
    delta_rule,
    full_attention,
    selective_scan,
    span_attention,
    state_space,
    window_attention,
)
from se_model.recurrence import GatedDeltaSizes, Mamba2Sizes, SelectiveScanSizes
from se_model.span.config import SpanConfig
from se_model.span.protocol import AttentionConfig
from se_model.span.schedule import as_chunk_sizes

ATTENTION = "attention"
CONVOLUTIONS = "convolutions"
STATES = "state-space layers"
PURPOSES = (ATTENTION, CONVOLUTIONS, STATES)

Exchanged = dict[str, Volume]
"""Volumes by their purpose, one of `PURPOSES`."""


def attention_exchange(config: AttentionConfig, heads: Heads, share: Share) -> Exchanged:
    """What a layer with this attention exchanges, at most: of several chunk sizes, for the costliest.

    Raises:
        ValueError: if the attention cannot run with its row over several ranks.
    """
    return {ATTENTION: _attention_volume(config, heads, share)}


def convolution_exchange(share: Share, *, channels: int, kernel: int) -> Exchanged:
    """What a short convolution exchanges: the inputs that it looks back to."""
    return {CONVOLUTIONS: convolution(share, channels=channels, kernel=kernel)}


def mamba2_exchange(sizes: Mamba2Sizes, share: Share) -> Exchanged:
    """What a Mamba-2 layer exchanges: the inputs that its convolution looks back to, and its states."""
    states = state_space(share, heads=sizes.heads, head_size=sizes.head_size, state_size=sizes.state_size)
    return convolution_exchange(share, channels=sizes.channels, kernel=sizes.kernel) | {STATES: states}


def delta_rule_exchange(sizes: GatedDeltaSizes, share: Share) -> Exchanged:
    """What a gated delta layer exchanges: what its convolution looks back to, its states and transitions."""
    states = delta_rule(share, heads=sizes.heads, key_size=sizes.key_size, value_size=sizes.value_size)
    return convolution_exchange(share, channels=sizes.channels, kernel=sizes.kernel) | {STATES: states}


def selective_scan_exchange(sizes: SelectiveScanSizes, share: Share) -> Exchanged:
    """What a Mamba-1 layer exchanges: the inputs that its convolution looks back to, and its states."""
    states = selective_scan(share, channels=sizes.channels, state_size=sizes.state_size)
    return convolution_exchange(share, channels=sizes.channels, kernel=sizes.kernel) | {STATES: states}


def _attention_volume(config: AttentionConfig, heads: Heads, share: Share) -> Volume:
    if isinstance(config, FullConfig):
        return full_attention(share, heads)
    if isinstance(config, SlidingWindowConfig):
        return window_attention(share, heads, config.window)
    if isinstance(config, NoMemoryConfig):
        # Of any chunk as much as may lie on the rank before, whether documents begin there or not.
        return window_attention(share, heads, max(as_chunk_sizes(config.chunk_sizes)))
    if isinstance(config, SpanConfig):
        volumes = [
            span_attention(
                share,
                heads,
                chunk_size=size,
                block_size=config.block_size,
                top_k=config.top_k,
                summary=options.summary,
                refresh=options.queries_per_choice if options.causal else None,
                sums=options.sums,
            )
            for size in as_chunk_sizes(config.chunk_sizes)
            for options in [config.options_of(size)]
        ]
        return max(volumes, key=lambda each: each.total)
    raise ValueError(
        f"attention {config.kind!r} cannot run with its row over several ranks (context_parallel)"
    )
