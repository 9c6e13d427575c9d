"""The record of selections counts what was chosen while it was active, and nothing else."""

import pytest
import torch

from se_model.span import se_attention, select_blocks
from se_model.span.statistics import record_selections


def test_statistics_are_those_counted_from_the_blocks(draw):
    q, k, v = draw(70)
    bounds = torch.tensor([0, 50, 70])
    options = {"chunk_size": 16, "block_size": 4, "top_k": 6, "cu_seqlens": bounds}
    with record_selections() as record:
        se_attention(q, k, v, **options)
    blocks = select_blocks(q, k, v, **options)
    # 4 chunks in the first document, 2 in the second; 13 and 5 blocks.
    chunk_starts = [0, 16, 32, 48, 50, 66]
    block_starts = [*range(0, 50, 4), *range(50, 70, 4)]
    distances, distinct = [], set()
    for head in range(2):
        for chunk, ids in zip(chunk_starts, blocks[0, head].tolist(), strict=True):
            distances += [chunk - block_starts[j] for j in ids if j >= 0]
            distinct |= {(head, j) for j in ids if j >= 0}
    summary = record.summary()
    assert summary["filled"] == pytest.approx(len(distances) / (2 * 6 * 6))
    assert summary["distance"] == pytest.approx(sum(distances) / len(distances))
    # 12 blocks before the first document's last chunk, 4 before the second's, for each of two heads.
    assert summary["distinct"] == pytest.approx(len(distinct) / 32)


def test_several_calls_are_pooled(draw):
    q, k, v = draw(40)
    with record_selections() as record:
        select_blocks(q, k, v, chunk_size=16, block_size=4, top_k=1)
        select_blocks(q, k, v, chunk_size=40, block_size=4, top_k=1)
    assert record.summary()["filled"] == pytest.approx(2 / 4)


def test_nothing_is_recorded_outside(draw):
    q, k, v = draw(40)
    with record_selections() as record:
        pass
    se_attention(q, k, v, chunk_size=16, block_size=4)
    assert record.summary() == {}


def test_nothing_retrievable_is_no_division_by_zero(draw):
    with record_selections() as record:
        se_attention(*draw(10), chunk_size=16, block_size=4, top_k=0)
    assert record.summary() == {"filled": 0.0, "distance": 0.0, "distinct": 0.0}
