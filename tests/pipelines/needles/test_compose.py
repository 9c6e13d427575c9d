import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from pipelines.models.builtin import builtin
from pipelines.models.tokenizers import load_tokenizer
from pipelines.needles.compose import needle_document, recall_prompt, vocabulary, word_tokenizer
from pipelines.needles.sentences import link, needle, question_about, word_count
from pipelines.needles.words import KEYS
from pipelines.recipe.keys.needles import MOST_KEYS, RECALL_TASKS, SENTENCE_WORDS, NeedleDocuments


def stated_values(words: list[str]) -> dict[str, str]:
    """Key -> value, read off the text's own notes, links followed; fails where two notes disagree."""
    notes: dict[str, str] = {}
    for i, word in enumerate(words):
        if word == "note":
            key, told = words[i + 2], words[i + 3]
            assert notes.setdefault(key, told) == told
    return {key: notes.get(told, told) for key, told in notes.items()}


def questions(words: list[str]) -> list[tuple[int, str, str]]:
    return [(i, words[i + 2], words[i + 3]) for i, word in enumerate(words) if word == "recall"]


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(100, 400),
    needles=st.integers(1, 8),
    asked=st.integers(0, 6),
    links=st.integers(0, 4),
    ask=st.sampled_from(["end", "anywhere"]),
    index=st.integers(0, 10**6),
)
def test_a_document_has_the_words_asked_for_and_every_answer_is_stated_before_its_question(
    tokens: int, needles: int, asked: int, links: int, ask: str, index: int
) -> None:
    spec = NeedleDocuments.model_validate(
        {"tokens": tokens, "needles": needles, "questions": asked, "links": links, "ask": ask}
    )
    words = needle_document(spec, seed=3, index=index).split(" ")
    assert len(words) == tokens
    assert len(questions(words)) == asked
    for position, key, value in questions(words):
        assert stated_values(words[:position])[key] == value
    if ask == "end" and asked:
        assert "note" not in words[questions(words)[0][0] :]


def test_documents_depend_on_the_seed_and_the_index_alone() -> None:
    spec = NeedleDocuments(tokens=128)
    assert needle_document(spec, seed=1, index=5) == needle_document(spec, seed=1, index=5)
    assert needle_document(spec, seed=1, index=5) != needle_document(spec, seed=1, index=6)
    assert needle_document(spec, seed=1, index=5) != needle_document(spec, seed=2, index=5)


def test_needles_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValidationError, match="take 60 words, more than tokens = 50"):
        NeedleDocuments(tokens=50, needles=8, questions=4)


@pytest.mark.parametrize("task", RECALL_TASKS)
@pytest.mark.parametrize("length", [120, 256, 1000])
def test_a_prompt_has_the_length_asked_for_and_its_answers_are_where_it_says(task: str, length: int) -> None:
    tokenizer = word_tokenizer()
    for index in range(5):
        sample = recall_prompt(task, length=length, seed=0, index=index, tokenizer=tokenizer)
        assert len(sample.input_ids) == length
        assert tokenizer.unk_token_id not in sample.input_ids
        words = tokenizer.decode(sample.input_ids).split(" ")
        asked = questions(words)
        assert [(position + 3, position + 4) for position, _, _ in asked] == sample.answer_spans
        for position, key, value in asked:
            assert stated_values(words[:position])[key] == value
        assert len(asked) == (4 if task == "multi_query" else 1)
        linked = {key for key, told in itertools.pairwise(words) if told in stated_values(words)}
        assert (asked[0][1] in linked) == (task == "variable_tracking")


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("task", RECALL_TASKS)
def test_a_prompt_says_at_which_depth_the_needle_of_each_answer_stands(task: str, bos: int | None) -> None:
    tokenizer = word_tokenizer()
    for index in range(10):
        sample = recall_prompt(task, length=200, seed=0, index=index, tokenizer=tokenizer, bos=bos)
        words = tokenizer.decode(sample.input_ids).split(" ")
        note_of = {words[i + 2]: i for i, word in enumerate(words) if word == "note"}
        for (_, key, value), depth in zip(questions(words), sample.needle_depths, strict=True):
            told = words[note_of[key] + 3]
            place = note_of[told] if task == "variable_tracking" else note_of[key]
            assert words[place + 3] == value
            assert depth == place / 200


def test_the_depth_of_a_needle_is_that_of_its_first_token_under_any_tokenizer() -> None:
    tokenizer = load_tokenizer("builtin:ruler-tiny")
    sample = recall_prompt("single", length=700, seed=0, index=3, tokenizer=tokenizer)
    before = tokenizer.decode(sample.input_ids[: round(sample.needle_depths[0] * 700)])
    text = tokenizer.decode(sample.input_ids)
    assert before.rstrip() == text[: text.index("note :")].rstrip()


def test_a_prompt_too_short_for_its_needles_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens longer than length = 40"):
        recall_prompt("multi_key", length=40, seed=0, index=0, tokenizer=word_tokenizer())


def test_the_shipped_tokenizer_is_the_vocabulary_of_the_documents() -> None:
    shipped = AutoTokenizer.from_pretrained(builtin("tiny"))
    assert shipped.get_vocab() == word_tokenizer().get_vocab()
    assert len(set(vocabulary())) == len(vocabulary()) == len(shipped) - 2


def test_the_numbers_that_a_recipe_is_checked_by_are_those_of_the_sentences() -> None:
    sentences = (needle("a", "0"), link("a", "b"), question_about("a", "0"))
    assert {word_count(sentence) for sentence in sentences} == {SENTENCE_WORDS}
    assert len(KEYS) == MOST_KEYS
