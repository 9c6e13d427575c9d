"""Needles and questions are found in tokens where the text has them, and nothing is guessed."""

from __future__ import annotations

from itertools import accumulate

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from pipelines.models.tokenizers import load_tokenizer
from pipelines.needles.compose import needle_document, recall_prompt, vocabulary
from pipelines.needles.find import cases_in, find_asked
from pipelines.needles.sentences import link, needle, question_about
from pipelines.recipe.keys.needles import RECALL_TASKS, NeedleDocuments
from se_model.span.cases import AskedDocument, Needle, Question

FILLER = "the old miller went ."
TEXT = " ".join(
    [
        FILLER,
        needle("falcon", "42").text,
        needle("oak", "17").text,
        link("heron", "oak").text,
        question_about("heron", "17").text,
        question_about("falcon", "42").text,
        FILLER,
    ]
)
# In words: filler has 5, every other sentence 5.
EXPECTED = AskedDocument(
    0,
    (Needle(5, 8, 10), Needle(10, 13, 15), Needle(15, 18, 20)),
    (Question(20, 22, 25, Needle(15, 18, 20)), Question(25, 27, 30, Needle(5, 8, 10))),
)


def byte_level(merges: int = 400) -> PreTrainedTokenizerFast:
    """Words have their blank before them, and most are several tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    documents = [needle_document(NeedleDocuments(tokens=200), seed=1, index=index) for index in range(20)]
    trainer = BpeTrainer(vocab_size=256 + merges, special_tokens=["<eos>"], show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def pieces() -> PreTrainedTokenizerFast:
    """Like SentencePiece: a text begins as if a blank stood before it, which decoding takes off."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    documents = [needle_document(NeedleDocuments(tokens=200), seed=1, index=index) for index in range(20)]
    trainer = BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_question_asks_for_the_note_about_its_key_even_where_that_names_another() -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    ids = tokens(tokenizer, TEXT)
    assert find_asked(tokenizer, ids, [len(ids)]) == [EXPECTED]


def test_documents_of_a_row_ask_for_their_own_needles_only() -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    end = tokenizer.eos_token_id
    own = tokens(tokenizer, TEXT)
    asks_elsewhere = [*tokens(tokenizer, question_about("falcon", "42").text), end]
    told_again = [*tokens(tokenizer, needle("falcon", "42").text + " " + TEXT), end]
    row = [*own, *asks_elsewhere, *told_again]
    found = find_asked(tokenizer, row, [len(own), len(asks_elsewhere), len(told_again)])
    at = len(own) + len(asks_elsewhere)
    moved, first = EXPECTED.moved(0, at + 5), Needle(at, at + 3, at + 5)
    assert found == [EXPECTED, AskedDocument(0, (first, *moved.needles), moved.questions)]


def test_of_several_notes_about_a_key_the_last_before_the_question_is_asked_for() -> None:
    """As in rows whose documents run into each other."""
    tokenizer = load_tokenizer("builtin:tiny")
    end = tokenizer.eos_token_id
    sentences = [needle("oak", "17"), needle("oak", "42"), question_about("oak", "42"), needle("oak", "17")]
    row = [token for each in sentences for token in (*tokens(tokenizer, each.text), end)]
    (document,) = find_asked(tokenizer, row, [len(row)])
    assert [question.needle.start for question in document.questions] == [6]
    assert len(document.needles) == 3


@pytest.mark.parametrize("words", ["note : oak 17 . recall : oak 42 .", "recall : oak 17 . note : oak 17 ."])
def test_a_question_whose_answer_was_not_told_is_no_case(words: str) -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    ids = tokens(tokenizer, words)
    assert find_asked(tokenizer, ids, [len(ids)]) == []


@pytest.mark.parametrize("make", [byte_level, pieces])
@pytest.mark.parametrize("lead", ["", "was "])
def test_tokens_that_are_parts_of_words_are_counted_as_such(make, lead: str) -> None:
    """Also where a document begins as running text does, cut out of a longer one."""
    tokenizer = make()
    before = len(tokens(tokenizer, lead.rstrip()))
    ids = [*tokens(tokenizer, lead + TEXT)[before:], tokenizer.all_special_ids[0]]
    (document,) = find_asked(tokenizer, ids, [len(ids)])
    assert len(document.needles) == 3
    read = [tokenizer.decode(ids[each.start : each.end]).strip() for each in document.needles]
    assert read == [needle("falcon", "42").text, needle("oak", "17").text, link("heron", "oak").text]
    for each, value in zip(document.needles, ("42", "17", "oak"), strict=True):
        assert value.startswith(tokenizer.decode(ids[each.value : each.value + 1]).strip())
    for question, (key, value) in zip(document.questions, (("heron", "17"), ("falcon", "42")), strict=True):
        asked = tokenizer.decode(ids[question.start : question.predicts + 1]).strip()
        assert asked == question_about(key, "").text.removesuffix(" .")
        assert tokenizer.decode(ids[question.start : question.end]).strip() == question_about(key, value).text


@pytest.mark.parametrize("odd", ["THE", "ODD"], ids=["another token", "no token"])
def test_a_document_whose_tokens_do_not_come_back_gives_no_cases(odd: str) -> None:
    words = {word: index for index, word in enumerate(vocabulary())}
    lower = Tokenizer(WordLevel(words | {odd: 999, "<eos>": 1000}))
    lower.normalizer = normalizers.Lowercase()
    lower.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lower, eos_token="<eos>")
    ids = tokens(tokenizer, TEXT)
    assert len(find_asked(tokenizer, ids, [len(ids)])) == 1
    assert find_asked(tokenizer, [999, *ids], [1 + len(ids)]) == []
    assert find_asked(tokenizer, [999, 1000, *ids], [2 + len(ids)]) == []
    assert len(find_asked(tokenizer, [999, 1000, *ids], [2, len(ids)])) == 1


@pytest.mark.parametrize("task", RECALL_TASKS)
@pytest.mark.parametrize("bos", [None, 1])
def test_every_answer_of_a_prompt_is_asked_for(task, bos: int | None) -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    samples = [
        recall_prompt(task, length=150, seed=0, index=index, tokenizer=tokenizer, bos=bos)
        for index in range(2)
    ]
    cases = cases_in(tokenizer, [(sample.input_ids, [150]) for sample in samples], joined=False)
    assert (cases.rows, cases.tokens, [each.row for each in cases.documents]) == (2, 150, [0, 1])
    for sample, document in zip(samples, cases.documents, strict=True):
        assert [question.predicts + 1 for question in document.questions] == [
            start for start, _ in sample.answer_spans
        ]


def test_rows_joined_to_one_count_their_tokens_on() -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    ids = tokens(tokenizer, TEXT)
    length = len(ids)
    joined = cases_in(tokenizer, [(ids, [length])] * 2, joined=True)
    assert (joined.rows, joined.tokens) == (1, 2 * length)
    assert joined.documents == (EXPECTED, EXPECTED.moved(0, length))
    apart = cases_in(tokenizer, [(ids, [length])] * 2, joined=False)
    assert apart.documents == (EXPECTED, EXPECTED.moved(1, 0))


def test_every_question_of_a_training_document_is_a_case() -> None:
    tokenizer = load_tokenizer("builtin:tiny")
    spec = NeedleDocuments(tokens=200, needles=6, questions=5, links=2, ask="anywhere")
    documents = [tokens(tokenizer, needle_document(spec, seed=2, index=index)) for index in range(5)]
    row = [token for document in documents for token in document]
    found = find_asked(tokenizer, row, [len(document) for document in documents])
    starts = accumulate(map(len, documents), initial=0)
    assert [len(each.questions) for each in found] == [5] * 5
    for start, document in zip(starts, found, strict=False):
        assert all(start <= question.needle.start < start + 200 for question in document.questions)
