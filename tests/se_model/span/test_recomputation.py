"""Property 6: a recomputed forward has the chunk sizes and the blocks of the first."""

from collections import Counter

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from se_model.baselines import NoMemoryConfig, RandomConfig
from se_model.span import SpanConfig, operator
from se_model.span.schedule import draw_chunk_size

CONFIGS = [
    SpanConfig(chunk_sizes=(8, 16), block_size=4, top_k=2, seed=3),
    SpanConfig(chunk_sizes=(8, 16), block_size=4, top_k=2, seed=3, rule="paper"),
    SpanConfig(chunk_sizes=(8, 16), block_size=4, top_k=2, seed=3, selection="causal"),
    SpanConfig(chunk_sizes=(8, 16), block_size=4, top_k=2, seed=3, relevancy="max", queries={"stride": 3}),
    RandomConfig(chunk_sizes=(8, 16), block_size=4, top_k=2, seed=3),
    NoMemoryConfig(chunk_sizes=(8, 16), seed=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.kind}")
@pytest.mark.parametrize("step", range(4))
def test_activation_checkpointing_repeats_chunk_sizes_and_blocks(draw, monkeypatch, config, step):
    seen = []
    note = operator.note_selection
    monkeypatch.setattr(
        operator,
        "note_selection",
        lambda blocks, layout, top_k: (seen.append((layout.chunk_size, blocks)), note(blocks, layout, top_k)),
    )
    inputs = draw(70, dtype=torch.float32)

    def layers(q, k, v):
        for layer in range(3):
            q = q + config.bind(layer=layer, step=step)(q, k, v)
        return q

    plain = torch.autograd.grad(layers(*inputs).square().sum(), inputs)
    seen.clear()
    again = torch.autograd.grad(checkpoint(layers, *inputs, use_reentrant=False).square().sum(), inputs)
    assert len(seen) == 6
    for (first_size, first_blocks), (size, blocks) in zip(seen[:3], seen[3:], strict=True):
        assert first_size == size
        assert torch.equal(first_blocks, blocks)
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)


def test_each_layer_and_step_draws_anew_and_evenly():
    config = SpanConfig(chunk_sizes=(256, 512, 1024, 2048), seed=1)
    draws = [[config.chunk_size(layer=layer, step=step) for layer in range(8)] for step in range(500)]
    counts = Counter(size for row in draws for size in row)
    assert set(counts) == {256, 512, 1024, 2048}
    # Four standard deviations of a fair draw of 4,000.
    assert all(abs(count - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5 for count in counts.values())
    assert len({tuple(row) for row in draws}) > 490
    other_seed = SpanConfig(chunk_sizes=(256, 512, 1024, 2048), seed=2)
    assert [other_seed.chunk_size(layer=layer, step=0) for layer in range(8)] != draws[0]


def test_draws_are_the_same_in_every_process_and_version():
    draws = [draw_chunk_size((256, 512, 1024), seed=7, step=s, layer=n) for s in range(4) for n in range(4)]
    assert draws == [512, 512, 512, 512, 256, 512, 256, 1024, 512, 256, 256, 512, 256, 1024, 1024, 512]
