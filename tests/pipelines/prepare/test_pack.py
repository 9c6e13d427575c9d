"""Rows are exact, nothing is lost or doubled, few documents are cut, and weights are shares of tokens."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prepare import pack as packing_module
from pipelines.prepare.pack import Segment, draw, held_out, pack
from pipelines.recipe.keys.common import Packing

corpora = st.lists(st.integers(0, 50), max_size=60)
PACKINGS: tuple[Packing, ...] = ("documents", "concatenate")


def packed(lengths: list[int], sequence_length: int, packing: Packing) -> list[list[Segment]]:
    return list(pack(range(len(lengths)), np.array(lengths, dtype=np.int32), sequence_length, packing))


@pytest.mark.parametrize("packing", PACKINGS)
@given(lengths=corpora, sequence_length=st.integers(1, 20))
def test_every_token_is_in_one_row_but_for_less_than_a_row(
    packing: Packing, lengths: list[int], sequence_length: int
) -> None:
    rows = packed(lengths, sequence_length, packing)
    assert all(sum(segment.length for segment in row) == sequence_length for row in rows)
    tokens = [
        (segment.document, segment.start + offset)
        for row in rows
        for segment in row
        for offset in range(segment.length)
    ]
    assert len(set(tokens)) == len(tokens)
    assert all(0 <= token < lengths[document] for document, token in tokens)
    assert sum(lengths) - len(tokens) < sequence_length


@given(lengths=corpora, sequence_length=st.integers(1, 20))
def test_concatenation_keeps_the_corpus_in_order(lengths: list[int], sequence_length: int) -> None:
    stream = [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    rows = packed(lengths, sequence_length, "concatenate")
    assert [
        (segment.document, segment.start + offset)
        for row in rows
        for segment in row
        for offset in range(segment.length)
    ] == stream[: len(rows) * sequence_length]


def pieces(rows: list[list[Segment]]) -> dict[int, int]:
    count: dict[int, int] = defaultdict(int)
    for row in rows:
        for segment in row:
            count[segment.document] += 1
    return count


def test_documents_that_fill_rows_together_are_not_cut() -> None:
    rows = packed([60, 70, 40, 30, 100, 55, 45], 100, "documents")
    assert sorted(sorted(segment.document for segment in row) for row in rows) == [
        [0, 2],
        [1, 3],
        [4],
        [5, 6],
    ]


def test_only_few_documents_are_cut_to_fill_the_gaps_of_the_others() -> None:
    rows = packed([2000] * 500, 2048, "documents")
    cut = [document for document, count in pieces(rows).items() if count > 1]
    assert len(cut) <= 500 * 48 / 2048 + 1


def test_a_long_document_fills_whole_rows_before_its_rest_is_packed_with_others() -> None:
    rows = packed([250, 50], 100, "documents")
    assert rows == [
        [Segment(0, 0, 100)],
        [Segment(0, 100, 100)],
        [Segment(0, 200, 50), Segment(1, 0, 50)],
    ]


def test_rows_come_before_the_whole_corpus_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "POOL_PIECES", 8)
    taken = 0

    def documents() -> object:
        nonlocal taken
        for document in range(1000):
            taken += 1
            yield document

    next(pack(documents(), np.full(1000, 10, dtype=np.int32), 20, "documents"))  # type: ignore[arg-type]
    assert taken == 8


weighted_sources = st.lists(
    st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.floats(0.05, 1.0)),
    min_size=1,
    max_size=4,
)


@given(sources=weighted_sources)
def test_weights_are_shares_of_the_tokens_drawn_to_within_a_document_at_every_moment(
    sources: list[tuple[list[int], float]],
) -> None:
    lengths = np.array([length for each, _ in sources for length in each], dtype=np.int32)
    bounds = np.cumsum([0, *(len(each) for each, _ in sources)])
    numbers = [np.arange(bounds[i], bounds[i + 1]) for i in range(len(sources))]
    weights = [weight for _, weight in sources]
    order = list(draw(numbers, lengths, weights))
    assert len(set(order)) == len(order)
    assert any(set(each.tolist()) <= set(order) for each in numbers)  # it ends when a source has ended
    drawn = np.zeros(len(sources))
    longest = max(lengths) / min(weights)
    for document in order:
        drawn[np.searchsorted(bounds, document, side="right") - 1] += lengths[document]
        shares = drawn / np.array(weights)
        assert shares.max() - shares.min() <= longest + 1e-9


@given(sources=st.lists(st.lists(st.integers(1, 30), max_size=40), min_size=1, max_size=4))
def test_without_weights_every_document_is_drawn_once_and_each_source_in_order(
    sources: list[list[int]],
) -> None:
    lengths = np.array([length for each in sources for length in each], dtype=np.int32)
    bounds = np.cumsum([0, *(len(each) for each in sources)])
    numbers = [np.arange(bounds[i], bounds[i + 1]) for i in range(len(sources))]
    order = list(draw(numbers, lengths, [None] * len(sources)))
    assert sorted(order) == list(range(len(lengths)))
    for each in numbers:
        assert [document for document in order if document in set(each.tolist())] == each.tolist()


def test_two_sources_without_weights_mix_in_proportion_to_their_size() -> None:
    lengths = np.full(40, 10, dtype=np.int32)
    order = list(draw([np.arange(30), np.arange(30, 40)], lengths, [None, None]))
    assert [sum(document >= 30 for document in order[at : at + 20]) for at in (0, 20)] == [5, 5]


@given(
    lengths=st.lists(st.integers(1, 100), min_size=30, max_size=200),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32),
)
def test_the_held_out_share_is_met_to_within_a_document(
    lengths: list[int], fraction: float, seed: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    chosen = held_out(array, fraction, seed, source=0)
    assert abs(array[chosen].sum() - fraction * array.sum()) <= max(lengths)
    assert np.array_equal(chosen, held_out(array, fraction, seed, source=0))


def test_of_few_long_documents_the_shortest_is_held_out_and_an_only_one_never() -> None:
    assert held_out(np.array([500, 300, 400]), 0.01, 0, 0).tolist() == [False, True, False]
    assert held_out(np.array([500]), 0.01, 0, 0).tolist() == [False]
    assert not held_out(np.array([500, 300]), 0.0, 0, 0).any()
