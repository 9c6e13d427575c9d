"""The two ablations of retrieval: nothing retrieved, and past blocks at random."""

from collections import Counter

import pytest
import torch

from se_model.attentions import ATTENTION_KINDS
from se_model.baselines import NoMemoryConfig, RandomConfig, full_attention
from se_model.baselines.random_memory import draw_blocks
from se_model.span import SpanConfig
from se_model.span.layout import cut
from tests.tolerances import F64, within


@pytest.mark.parametrize("values", [8, 5, 13])
def test_no_memory_is_attention_inside_chunks(draw, assert_attends, document_of, values):
    bounds = (0, 5, 40)
    inputs = draw(40, values=values)
    attention = NoMemoryConfig(chunk_sizes=7).bind(layer=0, step=0)

    def sees(head, t, s):
        start = document_of(bounds, t)
        return start <= s <= t and (t - start) // 7 == (s - start) // 7

    assert_attends(attention(*inputs, cu_seqlens=torch.tensor(bounds)), inputs, sees)


def test_memories_draw_the_chunk_sizes_of_span_attention():
    sizes = {"chunk_sizes": (64, 128, 256), "seed": 5}
    span = SpanConfig(**sizes)
    for step in range(20):
        size = span.chunk_size(layer=1, step=step)
        for config in (NoMemoryConfig(**sizes), RandomConfig(**sizes)):
            assert config.bind(layer=1, step=step).keywords["chunk_size"] == size


def test_random_blocks_are_distinct_candidates_each_equally_likely():
    layout = cut(4, 2, 4, (0, 17, 23))
    counts: Counter[int] = Counter()
    for key in range(400):
        blocks = draw_blocks(1, 2, layout, 3, key)
        assert blocks.shape == (1, 2, 7, 3)
        # Chunks 0 to 4 of the first document may use 0, 2, 4, 6, 8 blocks; the second begins at block 9.
        limits = [range(0), range(2), range(4), range(6), range(8), range(0), range(9, 11)]
        for head in blocks[0].tolist():
            for ids, allowed in zip(head, limits, strict=True):
                chosen = [j for j in ids if j >= 0]
                assert len(chosen) == min(3, len(allowed))
                assert ids == sorted(set(chosen)) + [-1] * (3 - len(chosen))
                assert set(chosen) <= set(allowed)
            counts.update(head[4])
    # 800 draws of 3 out of 8: four standard deviations.
    assert all(abs(counts[j] - 300) < 4 * (800 * 3 / 8 * 5 / 8) ** 0.5 for j in range(8))


def test_random_blocks_differ_by_head_layer_step_and_seed_and_repeat_otherwise(draw):
    inputs = draw(64)

    def run(seed, layer, step):
        return RandomConfig(chunk_sizes=8, block_size=4, top_k=2, seed=seed).bind(layer=layer, step=step)(
            *inputs
        )

    assert torch.equal(run(1, 2, 3), run(1, 2, 3))
    for other in (run(0, 2, 3), run(1, 0, 3), run(1, 2, 0)):
        assert not torch.equal(run(1, 2, 3), other)
    layout = cut(8, 4, 8, (0, 64))
    blocks = draw_blocks(1, 2, layout, 2, 0)
    assert not torch.equal(blocks[:, 0], blocks[:, 1])


@pytest.mark.parametrize("values", [8, 5, 13])
def test_all_past_blocks_at_random_are_full_attention(draw, values):
    inputs = draw(45, values=values)
    cu_seqlens = torch.tensor([0, 30, 45])
    attention = RandomConfig(chunk_sizes=8, block_size=4, top_k=99).bind(layer=0, step=0)
    torch.testing.assert_close(
        attention(*inputs, cu_seqlens=cu_seqlens),
        full_attention(*inputs, cu_seqlens=cu_seqlens),
        **within(F64),
    )


@pytest.mark.parametrize("config", [NoMemoryConfig, RandomConfig])
def test_no_chunk_size_is_refused(config):
    with pytest.raises(ValueError, match="one or more sizes"):
        config(chunk_sizes=())


def test_every_kind_is_in_the_table_under_its_name():
    assert list(ATTENTION_KINDS) == ["full", "span", "window", "s2", "none", "random"]
    for kind, config in ATTENTION_KINDS.items():
        assert config.kind == kind
