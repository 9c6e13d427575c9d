"""The causal triangle is cut into tiles that hold every pair once."""

import pytest
import torch

from se_model.span.sdpa import triangle
from se_model.span.sdpa.triangle import cut_triangle


def pairs_of(tiles, length):
    """Which (query, key) pairs the tiles hold, and how often: [length, length]."""
    seen = torch.zeros(length, length, dtype=torch.int64)
    for n in range(tiles.count):
        key = tiles.start + n * tiles.step
        query = key if tiles.causal else key + tiles.keys
        tile = torch.ones(tiles.queries, tiles.keys, dtype=torch.int64)
        seen[query : query + tiles.queries, key : key + tiles.keys] += tile.tril() if tiles.causal else tile
    return seen


@pytest.mark.parametrize("at_once", [1, 8, 1024])
@pytest.mark.parametrize("length", range(1, 71))
def test_every_pair_is_in_one_tile(monkeypatch, length, at_once):
    monkeypatch.setattr(triangle, "SIDE", 4)
    seen = sum(pairs_of(tiles, length) for tiles in cut_triangle(length, at_once))
    assert torch.equal(seen, torch.ones(length, length, dtype=torch.int64).tril())


@pytest.mark.parametrize("length", [1, 127, 128, 129, 255, 257, 384, 1337, 2048, 4096])
def test_causal_tiles_come_first_and_hold_every_token_once(length):
    tiles = list(cut_triangle(length, 1024))
    causal = [tile.causal for tile in tiles]
    assert causal == sorted(causal, reverse=True)
    tokens = [
        tile.start + n * tile.step + token
        for tile in tiles
        if tile.causal
        for n in range(tile.count)
        for token in range(tile.queries)
    ]
    assert tokens == list(range(length))


def test_a_long_chunk_computes_little_of_the_future():
    # A causal tile is computed as the whole square.
    computed = sum(tile.count * tile.queries * tile.keys for tile in cut_triangle(2048, 1024))
    assert computed < 1.07 * 2048 * 2049 / 2


def test_no_call_has_many_queries_unless_a_single_tile_has():
    for tile in cut_triangle(8192, 1024):
        assert tile.count == 1 or tile.count * tile.queries <= 1024
