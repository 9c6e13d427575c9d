"""Choices find what they are asked for as often as is counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from se_model.baselines.random_memory import random_memory_attention
from se_model.span import se_attention
from se_model.span.cases import AskedDocument, Cases, Needle, Question
from se_model.span.hits import Hits
from se_model.span.statistics import record_selections, running_layer
from tests.se_model.synchronisation import Watch

CHUNK, BLOCK = 8, 4


def needle(start: int) -> Needle:
    """Three tokens, the value the second; it lies in the block of its first."""
    return Needle(start, start + 1, start + 3)


def question(predicts: int, about: Needle) -> Question:
    return Question(predicts - 1, predicts, predicts + 2, about)


def asked(row: int, needles: Sequence[Needle], *questions: Question) -> AskedDocument:
    return AskedDocument(row, tuple(needles), questions)


def choice_of(blocks: dict[tuple[int, int, int], list[int]], shape: tuple[int, int, int, int]) -> Tensor:
    """Blocks [B, G, T, K] as given for (row, head, choice); other choices are empty."""
    chosen = torch.full(shape, -1)
    for place, ids in blocks.items():
        chosen[place][: len(ids)] = torch.tensor(ids)
    return chosen


def means(cases: Cases, chosen: Tensor, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> dict[str, Any]:
    with record_selections() as record:
        record.ask(lambda: cases)
        se_attention(q, k, v, chunk_size=CHUNK, block_size=BLOCK, blocks=chosen, **options)
    return record.summary()


def test_a_choice_by_chunk_with_grouped_heads(draw) -> None:
    """Three chunks of two blocks; the last chunk's two questions ask for blocks 0 and 2, none for 1 and 3."""
    first, idle, second, late = needle(0), needle(4), needle(8), needle(12)
    in_chunk = needle(16)  # no candidate of the chunk that asks
    document = asked(
        0,
        [first, idle, second, late, in_chunk],
        question(18, first),
        question(20, second),
        question(22, in_chunk),
    )
    chosen = choice_of(
        {
            (0, 0, 1): [0, 1],
            (0, 1, 1): [0, 1],
            (0, 0, 2): [0, 2],  # head 0 finds both
            (0, 1, 2): [1, 2],  # head 1 finds one, and one that nobody asks for
        },
        (1, 2, 3, 2),
    )
    summary = means(Cases(1, 24, (document,)), chosen, *draw(24, heads=4, groups=2))
    assert summary["asked_by_head"] == [[1.0, 0.5]]
    assert summary["asked"] == 0.75
    assert summary["not_asked_by_head"] == [[0.0, 0.5]]
    assert summary["not_asked"] == 0.25
    assert summary["chance"] == 2 / 4


def test_a_needle_counts_only_where_it_lies_wholly_in_candidates(draw) -> None:
    across = Needle(6, 7, 9)  # its value lies in a candidate of the second chunk, its end does not
    document = asked(0, [across], question(12, across))
    chosen = choice_of({(0, 0, 1): [0, 1], (0, 1, 1): [0, 1]}, (1, 2, 2, 2))
    assert "asked" not in means(Cases(1, 16, (document,)), chosen, *draw(16))


def test_the_choice_of_a_question_holds_the_token_that_predicts_its_answer(draw) -> None:
    """The answer is the first token of the third chunk; the second chunk's choice is asked for it."""
    there = needle(0)
    document = asked(0, [there], question(15, there))
    chosen = choice_of({(0, h, c): [block] for h in (0, 1) for c, block in ((1, 0), (2, 3))}, (1, 2, 3, 1))
    assert means(Cases(1, 24, (document,)), chosen, *draw(24))["asked"] == 1.0


def test_what_another_question_of_the_same_choice_asks_for_is_not_held_against_it(draw) -> None:
    """Both needles are asked for in one chunk, the third shares a block with one of them."""
    first, second, beside = Needle(0, 1, 2), needle(4), Needle(2, 3, 4)
    document = asked(0, [first, beside, second], question(9, first), question(12, second))
    chosen = choice_of({(0, head, 1): [0, 1] for head in (0, 1)}, (1, 2, 2, 2))
    summary = means(Cases(1, 16, (document,)), chosen, *draw(16))
    assert summary["asked"] == 1.0
    assert "not_asked" not in summary
    assert "not_asked_by_head" not in summary


def test_a_causal_choice_is_that_of_a_group_of_queries(draw) -> None:
    """Groups of four queries: the second group of the second chunk asks, the first finds."""
    there, idle = needle(0), needle(4)
    document = asked(0, [there, idle], question(13, there))
    cases = Cases(1, 16, (document,))
    found = choice_of({(0, head, choice): [choice - 2] for head in (0, 1) for choice in (2, 3)}, (1, 2, 4, 1))
    summary = means(cases, found, *draw(16), selection="causal", refresh=4)
    assert (summary["asked"], summary["not_asked"], summary["chance"]) == (0.0, 1.0, 0.5)
    moved = choice_of({(0, head, choice): [3 - choice] for head in (0, 1) for choice in (2, 3)}, (1, 2, 4, 1))
    summary = means(cases, moved, *draw(16), selection="causal", refresh=4)
    assert (summary["asked"], summary["not_asked"]) == (1.0, 0.0)


def test_what_an_earlier_group_of_queries_asks_is_not_asked_by_a_later_one(draw) -> None:
    first, second = needle(0), needle(4)
    document = asked(0, [first, second], question(9, first), question(13, second))
    chosen = choice_of({(0, head, choice): [0] for head in (0, 1) for choice in (2, 3)}, (1, 2, 4, 1))
    summary = means(Cases(1, 16, (document,)), chosen, *draw(16), selection="causal", refresh=4)
    # Block 0: asked for by the first group, and found by the second, which asks for block 1.
    assert (summary["asked"], summary["not_asked"]) == (1 / 2, 1 / 2)


def test_documents_of_a_packed_row_count_their_own_blocks(draw) -> None:
    """Documents of 10 and 14 tokens: blocks 0 to 2 and 3 to 6, chunks 0 to 1 and 2 to 3."""
    there, idle = needle(10), needle(14)
    document = asked(0, [there, idle], question(20, there))
    options = {"cu_seqlens": torch.tensor([0, 10, 24])}
    for block, expected in ((3, (1.0, 0.0)), (4, (0.0, 1.0))):
        chosen = choice_of({(0, h, c): [b] for h in (0, 1) for c, b in ((1, 0), (3, block))}, (1, 2, 4, 1))
        summary = means(Cases(1, 24, (document,)), chosen, *draw(24), **options)
        assert (summary["asked"], summary["not_asked"]) == expected


def test_rows_of_a_batch_are_told_apart(draw) -> None:
    there = needle(0)
    documents = tuple(asked(row, [there, needle(4)], question(12, there)) for row in range(2))
    chosen = choice_of({(0, 0, 1): [0], (0, 1, 1): [0], (1, 0, 1): [0], (1, 1, 1): [1]}, (2, 2, 2, 1))
    summary = means(Cases(2, 16, documents), chosen, *draw(16, batch=2))
    assert summary["asked_by_head"] == [[1.0, 0.5]]
    assert summary["not_asked_by_head"] == [[0.0, 0.5]]


def test_layers_are_told_apart_and_one_without_cases_keeps_its_place(draw) -> None:
    there = needle(0)
    q, k, v = draw(16)
    with record_selections() as record:
        record.ask(lambda: Cases(1, 16, (asked(0, [there], question(12, there)),)))
        for layer, chunk in ((0, 16), (1, CHUNK)):  # in a single chunk nothing can be chosen
            with running_layer(layer):
                se_attention(q, k, v, chunk_size=chunk, block_size=BLOCK, top_k=2)
    assert record.summary()["asked_by_head"] == [[None, None], [1.0, 1.0]]
    assert record.summary()["asked"] == 1.0


def test_calls_are_asked_their_own_cases_and_a_call_of_another_shape_none(draw) -> None:
    q, k, v = draw(16)
    chosen = choice_of({(0, head, 1): [0] for head in (0, 1)}, (1, 2, 2, 1))
    with record_selections() as record:
        for rows, row, there in ((1, 0, needle(0)), (1, 0, needle(4)), (2, 1, needle(0))):
            document = asked(row, [there], question(12, there))
            record.ask(lambda rows=rows, document=document: Cases(rows, 16, (document,)))
            se_attention(q, k, v, chunk_size=CHUNK, block_size=BLOCK, blocks=chosen)
    assert record.hits().layers[0].asked_cases == 2
    assert record.hits().layers[0].asked == (1, 1)


def test_nobody_looks_where_nothing_is_chosen() -> None:
    with record_selections() as record:
        record.ask(lambda: pytest.fail("looked for cases"))
    assert record.summary() == {}


def test_hits_of_several_workers_are_added_and_not_averaged(draw) -> None:
    there, other = needle(0), needle(4)
    parts = []
    for questions, block in ((1, 0), (3, 1)):
        document = asked(0, [there, other], *(question(10 + i, there) for i in range(questions)))
        chosen = choice_of({(0, head, 1): [block] for head in (0, 1)}, (1, 2, 2, 1))
        with record_selections() as record:
            record.ask(lambda document=document: Cases(1, 16, (document,)))
            se_attention(*draw(16), chunk_size=CHUNK, block_size=BLOCK, blocks=chosen)
        parts.append(record.hits())
    together = Hits.together([*parts, Hits()]).means()
    assert (together["asked"], together["not_asked"]) == (1 / 4, 1 / 2)
    assert together["asked_by_head"] == [[1 / 4, 1 / 4]]
    assert together["chance"] == 1 / 2


def test_random_blocks_find_what_is_asked_for_by_chance(draw) -> None:
    """Eight chunks of two blocks; what is asked for lies anywhere before."""
    needles = [needle(4 * block) for block in range(12)]
    questions = [question(8 * chunk + 3, needles[chunk]) for chunk in range(2, 8)]
    cases = Cases(2, 64, tuple(asked(row, needles, *questions) for row in range(2)))
    q, k, v = draw(64, batch=2, heads=2, groups=2)
    with record_selections() as record:
        record.ask(lambda: cases)
        for key in range(150):
            random_memory_attention(q, k, v, chunk_size=CHUNK, block_size=BLOCK, top_k=2, random_key=key)
    summary = record.summary()
    assert summary["chance"] == pytest.approx(sum(2 / (2 * chunk) for chunk in range(2, 8)) / 6)
    # 3,600 draws: more than four standard errors.
    assert summary["asked"] == pytest.approx(summary["chance"], abs=0.03)


@pytest.mark.parametrize("selection", ["chunk", "causal"])
def test_counting_waits_for_no_device(draw, selection: str) -> None:
    there, idle = needle(0), needle(4)
    q, k, v = draw(24)
    with record_selections() as record:
        record.ask(lambda: Cases(1, 24, (asked(0, [there, idle], question(12, there)),)))
        with Watch().raising():
            se_attention(q, k, v, chunk_size=CHUNK, block_size=BLOCK, top_k=1, selection=selection)
    assert record.hits().layers[0].asked_cases == 1


def test_hits_are_told_by_where_in_its_document_the_needle_stands(draw) -> None:
    """Two documents of 24 tokens; needles at 1/24 and 9/24 of each, head 0 finds the first, head 1 both."""
    first, second = needle(0), needle(8)
    document = asked(0, [first, second], question(18, first), question(20, second))
    cases = Cases(1, 48, (document, document.moved(0, 24)))
    chosen = choice_of(
        {(0, 0, 2): [0, 1], (0, 1, 2): [0, 2], (0, 0, 5): [6, 7], (0, 1, 5): [6, 8]}, (1, 2, 6, 2)
    )
    q, k, v = draw(48)
    with record_selections() as record:
        record.ask(lambda: cases)
        se_attention(
            q, k, v, chunk_size=CHUNK, block_size=BLOCK, blocks=chosen, cu_seqlens=torch.tensor([0, 24, 48])
        )
    assert record.hits().by_depth() == [
        {"low": 0.0, "high": 0.1, "asked": 1.0, "asked_by_layer": [1.0]},
        {"low": 0.3, "high": 0.4, "asked": 0.5, "asked_by_layer": [0.5]},
    ]
    assert Hits().by_depth() == []
