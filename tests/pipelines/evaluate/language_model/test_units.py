"""Requests on their way to workers: small, and told apart by every token and its place."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluate.language_model.encode import Prompt, ScoredTokens
from pipelines.evaluate.language_model.token_ids import TokenIds
from pipelines.evaluate.language_model.units import GenerationUnit, LikelihoodUnit

ROW = st.lists(st.integers(0, 2**31 - 1), max_size=9)


@given(row=ROW, other=ROW, start=st.integers(-12, 12), stop=st.integers(-12, 12))
def test_token_ids_are_the_sequence_that_a_tuple_would_be(
    row: list[int], other: list[int], start: int, stop: int
) -> None:
    ids = TokenIds.of(row)
    assert (list(ids), len(ids)) == (row, len(row))
    assert list(ids[start:stop]) == row[start:stop]
    assert [ids[place] for place in range(-len(row), len(row))] == row + row
    assert list(ids + TokenIds.of(other)) == row + other
    assert (ids == TokenIds.of(other)) == (row == other)
    assert {ids: 1}.get(TokenIds.of(row)) == 1


def test_a_number_that_is_no_token_is_refused() -> None:
    with pytest.raises(OverflowError):
        TokenIds.of([2**31])


def test_a_long_prompt_takes_about_four_bytes_a_token_to_send() -> None:
    row = TokenIds.of(range(100_000, 200_000))
    unit = GenerationUnit((Prompt(row, 128),), ("end",), "builtin:tiny", 4096)
    sent = pickle.dumps(unit)
    assert len(sent) < 4.02 * len(row)
    assert pickle.loads(sent) == unit
    assert pickle.loads(sent).key == unit.key


def test_keys_tell_where_a_context_ends_and_where_a_request_begins() -> None:
    def key(*requests: tuple[list[int], list[int]]) -> str:
        asked = (ScoredTokens(TokenIds.of(before), TokenIds.of(after)) for before, after in requests)
        return LikelihoodUnit(tuple(asked)).key

    keys = [
        key(([1, 2, 3], [4])),
        key(([1, 2], [3, 4])),
        key(([1, 2], [4, 3])),
        key(([1], [2]), ([3], [4])),
        key(([3], [4]), ([1], [2])),
    ]
    assert len(set(keys)) == len(keys)
    assert key(([1, 2], [3, 4])) == keys[1]


def test_keys_of_prompts_tell_all_that_a_text_depends_on() -> None:
    def key(new: int = 5, stop: tuple[str, ...] = ("a",), tokenizer: str = "t", *rows: list[int]) -> str:
        prompts = tuple(Prompt(TokenIds.of(row), new) for row in rows or [[1, 2], [3]])
        return GenerationUnit(prompts, stop, tokenizer, 64).key

    keys = [key(), key(6), key(5, ("b",)), key(5, ("a",), "u"), key(5, ("a",), "t", [1], [2, 3])]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
