"""The arithmetic that each attention's definition requires: pairs of a query and a key, and operations.

A pair costs a product with the key and one with the value, D multiplications and D additions each: 4 D
operations forward. A backward pass costs two and a half times as much again: of the two products of a pair it
repeats one and differentiates each with respect to both factors.
"""

from __future__ import annotations

from itertools import pairwise

from benchmarks.settings import Setting
from se_model.span.options import SpanOptions
from se_model.span.rules import summary_heads

BACKWARD = 2.5
"""Operations of a backward pass over a pair, as a multiple of the forward pass's."""


def pair_flops(setting: Setting, pairs: int) -> int:
    """Operations of a forward call in which every query head sees that many pairs."""
    return 4 * setting.heads * setting.head_dim * pairs


def causal_pairs(bounds: tuple[int, ...]) -> int:
    """How many (query, key) pairs attention sees that is causal between consecutive ``bounds``."""
    return sum((end - start) * (end - start + 1) // 2 for start, end in pairwise(bounds))


def window_pairs(window: int, length: int) -> int:
    """How many (query, key) pairs a sliding window sees; the token itself counts towards the window."""
    first = min(window, length)
    return causal_pairs((0, first)) + (length - first) * window


def chunk_bounds(chunk_size: int, length: int) -> tuple[int, ...]:
    """Where chunks begin, and the end of the last."""
    return (*range(0, length, chunk_size), length)


def span_pairs(setting: Setting, chunk_size: int, length: int) -> int:
    """How many (query, key) pairs SE-Attn sees: own chunk, causal, and the retrieved blocks."""
    bounds = chunk_bounds(chunk_size, length)
    retrieved = sum(
        (end - start) * min(setting.top_k, start // setting.block_size) * setting.block_size
        for start, end in pairwise(bounds)
    )
    return causal_pairs(bounds) + retrieved


def choice_flops(setting: Setting, options: SpanOptions, length: int) -> int:
    """What choosing the blocks costs: summaries of the candidates, the queries that judge, their products.

    A bound's minimum and maximum count as one operation for each number of a key; a query's or key's distance
    from the mean, with the mean, as four. What follows the products (a softmax, the ranking) is left out.
    """
    if not setting.top_k:
        return 0
    size, per_choice = options.block_size, options.queries_per_choice
    starts = range(0, length, per_choice)
    candidates = [start // options.chunk_size * options.chunk_size // size for start in starts]
    numbers = candidates[-1] * size * setting.head_dim
    summaries = {
        "attention": setting.heads * numbers * 4 * size,
        "mean_key": setting.kv_heads * numbers,
        "key_bounds": setting.kv_heads * numbers * 2,
        "representative_keys": setting.kv_heads * numbers * 4,
    }[options.summary]
    judges, sampling = [1] * len(candidates), length
    if not options.sums:
        judges = [options.queries.judges(min(per_choice, length - start)) for start in starts]
        sampling = 4 * length if options.queries.kind == "representative" else 0
    products = 2 * sum(count * blocks for count, blocks in zip(judges, candidates, strict=True))
    products *= summary_heads(options.summary, 1, 1, size)
    return summaries + setting.heads * setting.head_dim * (sampling + products)


def moba_pairs(block: int, most_blocks: int, length: int) -> int:
    """MoBA: the own block, causal, and ``most_blocks - 1`` of the blocks before it."""
    bounds = chunk_bounds(block, length)
    earlier = sum(
        (end - start) * min(most_blocks - 1, start // block) * block for start, end in pairwise(bounds)
    )
    return causal_pairs(bounds) + earlier


def nsa_pairs(block: int, most_blocks: int, window: int, length: int) -> int:
    """NSA: every past block's summary, ``most_blocks`` whole blocks (the own one causal), and a window."""
    summaries = sum((t + 1) // block for t in range(length))
    return summaries + moba_pairs(block, most_blocks, length) + window_pairs(window, length)


def training_flops(pairs: int, choice: int) -> float:
    """Operations of a forward and a backward pass, from those of a forward call; a choice has no backward."""
    return (1 + BACKWARD) * pairs + choice
