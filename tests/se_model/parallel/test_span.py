"""Property 5 for span attention: on any number of ranks what one process computes, outputs and gradients."""

import random
from itertools import product

import pytest
import torch

from se_model.baselines import FullConfig, NoMemoryConfig, SlidingWindowConfig
from se_model.parallel.attention import parallel_attention
from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.select import agree_on_shared
from se_model.parallel.shard import SequenceShard
from se_model.parallel.span import span_attention
from se_model.parallel.span_plan import plan_ranks
from se_model.span import SpanConfig
from se_model.span.layout import cut
from se_model.span.rules import RELEVANCIES, SUMMARIES
from tests.distributed import run_distributed
from tests.tolerances import F32, F64, within

SHARD = 16


def rows(ranks):
    """Document bounds: on, one before and one after a shard's boundary, over three shards, many short."""
    length = ranks * SHARD
    inner = [(), (16,), (15,), (17,), (5, 9, 10, length - 3)]
    return [(0, *(bound for bound in bounds if bound < length), length) for bounds in inner]


def draw(length, heads, groups, dtype, batch=1, values=8):
    generator = torch.Generator().manual_seed(length + heads)
    return [
        torch.randn(batch, length, count, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        for count, width in ((heads, 8), (groups, 8), (groups, values), (heads, values))
    ]


def agree(rank, ranks, config, bounds, groups, dtype, batch, values=8):
    """Every rank computes the whole row too, and compares its part."""
    *whole, weights = draw(bounds[-1], 4, groups, dtype, batch, values)
    whole = [x.requires_grad_() for x in whole]
    cu_seqlens = torch.tensor(bounds) if batch == 1 else None
    expected = config.bind(layer=1, step=5)(*whole, cu_seqlens=cu_seqlens)
    expected_gradients = torch.autograd.grad(expected, whole, weights)

    group = ContextParallelGroup()
    shard = SequenceShard.of(group, bounds[-1], cu_seqlens)
    own = [x.detach()[:, :, shard.tokens].clone().requires_grad_() for x in whole]
    attend = parallel_attention(config.kind)
    found = attend(config, *own, shard, layer=1, step=5, scale=None)
    tolerance = within(F64 if dtype == torch.float64 else F32)
    torch.testing.assert_close(found, expected[:, :, shard.tokens], **tolerance)
    gradients = torch.autograd.grad(found, own, weights[:, :, shard.tokens])
    for name, one, other in zip("qkv", gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            one, other[:, :, shard.tokens], **tolerance, msg=lambda text, name=name: f"d{name}: {text}"
        )


def strided(rank, ranks):
    """The head dimension strided, as a transpose leaves it."""
    config = SpanConfig(chunk_sizes=8, block_size=4, top_k=2)
    shard = SequenceShard.of(ContextParallelGroup(), ranks * SHARD)
    own = [x[:, :, shard.tokens] for x in draw(ranks * SHARD, 4, 2, torch.float64)[:3]]
    other = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in own]
    one, two = (span_attention(config, *x, shard, layer=0, step=0, scale=None) for x in (own, other))
    torch.testing.assert_close(one, two, **within(F64))


def test_memory_layout_makes_no_difference():
    run_distributed(strided, 2)


def every_case(rank, ranks):
    rules = list(product(RELEVANCIES, ("all", {"representative": 3}, {"stride": 3})))
    drawn_rules = random.Random(ranks)
    for bounds, (selection, refresh), groups, summary in product(
        rows(ranks),
        [("chunk", None), ("causal", None), ("causal", 2)],
        (1, 2, 4),
        SUMMARIES,
    ):
        relevancy, queries = drawn_rules.choice(rules)
        config = SpanConfig(
            chunk_sizes=8,
            block_size=4,
            top_k=2,
            selection=selection,
            refresh=refresh,
            summary=summary,
            relevancy=relevancy,
            queries=queries,
        )
        agree(rank, ranks, config, bounds, groups, torch.float64, 1)
    for top_k in (0, 1, 100):
        for size in (4, 16):
            config = SpanConfig(chunk_sizes=size, block_size=4, top_k=top_k)
            agree(rank, ranks, config, (0, 13, ranks * SHARD), 2, torch.float64, 1)
    drawn = SpanConfig(chunk_sizes=(4, 8, 16), block_size=4, top_k=3, seed=3)
    agree(rank, ranks, drawn, (0, ranks * SHARD), 2, torch.float64, 3)
    agree(rank, ranks, drawn, (0, ranks * SHARD), 2, torch.float32, 1)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_outputs_and_gradients_are_those_of_one_process(ranks):
    run_distributed(every_case, ranks)


def other_widths(rank, ranks):
    """Values narrower and wider than queries, as latent attention has them."""
    for bounds, values in zip(rows(ranks), (5, 13, 5, 13, 5), strict=True):
        for summary, (selection, refresh) in zip(
            ("mean_key", "key_bounds", "representative_keys"),
            (("chunk", None), ("causal", None), ("causal", 2)),
            strict=True,
        ):
            config = SpanConfig(
                chunk_sizes=8, block_size=4, top_k=2, selection=selection, refresh=refresh, summary=summary
            )
            agree(rank, ranks, config, bounds, 2, torch.float64, 1, values)
        for config in (
            FullConfig(),
            SlidingWindowConfig(7),
            SlidingWindowConfig(SHARD + 3),
            NoMemoryConfig(8),
            SpanConfig(chunk_sizes=8, block_size=4, top_k=0, rule="paper"),
        ):
            agree(rank, ranks, config, bounds, 4, torch.float64, 1, values)
    *own, _ = draw(ranks * SHARD, 4, 2, torch.float64, values=5)
    shard = SequenceShard.of(ContextParallelGroup(), ranks * SHARD)
    paper = SpanConfig(chunk_sizes=8, block_size=4, top_k=2, rule="paper")
    with pytest.raises(ValueError, match='summary="attention" has the 5 dimensions of values'):
        span_attention(paper, *(x[:, :, shard.tokens] for x in own), shard, layer=0, step=0, scale=None)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_values_of_another_width_than_queries_are_those_of_one_process(ranks):
    run_distributed(other_widths, ranks)


def shared_choices(rank, ranks):
    """Ranks that disagree about every choice; the second document begins inside a shard."""
    layout = cut(8, 4, 8, (0, 20, 48))
    plans = plan_ranks(layout, 3)
    ids = torch.full((1, 1, len(plans[rank].choices), 1), rank)
    return agree_on_shared(ids, ContextParallelGroup(), plans)[0, 0, :, 0].tolist()


def test_a_choice_that_two_ranks_share_is_the_one_of_its_first_query_s_rank():
    # Choices begin at tokens 0, 8, 16 and 20, 28, 36, 44; shards at 0, 16 and 32.
    assert run_distributed(shared_choices, 3) == [[0, 0], [1, 1, 1], [1, 2, 2]]
