"""The arithmetic of chunks, blocks and choices agrees with counting token by token."""

import pytest

from se_model.span.layout import cut

ROWS = [(0, n) for n in (1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 67)] + [(0, 1, 18, 50, 54, 119), (0, 16, 32, 33)]
REFRESHES = [16, 4, 2, 8]


@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("refresh", REFRESHES)
def test_every_token_is_in_one_chunk_run_and_one_choice_run_in_order(bounds: tuple[int, ...], refresh: int):
    layout = cut(16, 4, refresh, bounds)
    chunk_runs = list(layout.chunk_runs())
    choice_runs = list(layout.choice_runs(layout.counts(3)))
    for runs in (chunk_runs, choice_runs):
        assert [t for run in runs for t in range(run.tokens.start, run.tokens.stop)] == list(
            range(bounds[-1])
        )
    choices = [choice for run in choice_runs for choice in range(run.choices.start, run.choices.stop)]
    assert choices == list(range(layout.choices))


@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("refresh", REFRESHES)
def test_candidates_are_the_whole_blocks_wholly_before_the_chunk(bounds: tuple[int, ...], refresh: int):
    layout = cut(16, 4, refresh, bounds)
    starts = layout.block_starts
    for run in layout.choice_runs(layout.counts(10**6)):
        document = run.document
        for piece in range(run.pieces):
            first = run.start + piece * run.length
            chunk = document.start + (first - document.start) // 16 * 16
            assert layout.chunk_starts[run.first_choice + piece] == chunk
            expected = [j for j, start in enumerate(starts) if document.start <= start and start + 4 <= chunk]
            assert run.retrieved == len(expected)
            assert expected == list(range(document.first_block, document.first_block + len(expected)))
    assert layout.most_candidates == max(layout.counts(10**6))


def test_pieces_of_a_run_are_equally_long_and_retrieve_equally_many():
    layout = cut(16, 4, 16, (0, 70, 90))
    counts = (0, 2, 2, 1, 1, 0, 0)
    runs = [(r.start, r.pieces, r.length, r.retrieved) for r in layout.choice_runs(counts)]
    assert runs == [
        (0, 1, 16, 0),
        (16, 2, 16, 2),
        (48, 1, 16, 1),
        (64, 1, 6, 1),
        (70, 1, 16, 0),
        (86, 1, 4, 0),
    ]


def test_a_document_s_partial_last_block_has_an_id():
    layout = cut(16, 4, 16, (0, 6, 10))
    assert layout.block_starts == (0, 4, 6)
    assert layout.blocks == 3
    assert [document.first_block for document in layout.documents] == [0, 2]
