"""Documents fill their length, depend on what they are asked for alone, and are refused with a reason."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktSentenceTokenizer
from transformers import PreTrainedTokenizerFast

from pipelines.errors import EspanError
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.ruler import RULER_TASKS, QuestionTask, RulerTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.essays import Essays, read_essays
from pipelines.ruler.generate import generate
from pipelines.ruler.tasks import NEEDLES, answer_tokens
from pipelines.ruler.tokens import check_known, prompt_text, unknown_share
from tests.pipelines.ruler.material import KINDS, essay_text, tokenizer_of

ALL_TASKS: tuple[RulerTask, ...] = (*RULER_TASKS, *get_args(QuestionTask))
KEYS = {"index", "input", "outputs", "length", "max_length", "gen_prefix", "depth"}


def made(
    task: RulerTask, length: int, indices: list[int], sources: Sources, kind: str = "bytes", seed: int = 3
) -> list[dict[str, Any]]:
    return generate(task, length, indices=indices, seed=seed, tokenizer=tokenizer_of(kind), sources=sources)


def tokens_of(tokenizer: PreTrainedTokenizerFast, task: RulerTask, document: dict[str, Any]) -> list[int]:
    text = prompt_text(task, document["input"], document["gen_prefix"])
    tokens: list[int] = tokenizer(text)["input_ids"]
    return tokens


def assert_full(task: RulerTask, length: int, document: dict[str, Any], kind: str) -> None:
    tokens = len(tokens_of(tokenizer_of(kind), task, document)) + answer_tokens(task)
    assert tokens == document["length"]
    assert document["max_length"] == length
    assert 0.99 * length <= tokens <= length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ALL_TASKS)
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(length=st.integers(512, 8192))
def test_a_prompt_and_its_answer_fill_the_length_to_a_hundredth_and_never_exceed_it(
    task: RulerTask, kind: str, length: int, sources: Sources
) -> None:
    """Or, where the task is longer by itself, they fill the length that is named as the shortest."""
    try:
        (document,) = made(task, length, [1], sources, kind)
    except EspanError as error:
        shortest = int(str(error).partition("the shortest have ")[2].partition(";")[0])
        assert length < shortest < 1500
        (document,) = made(task, shortest, [1], sources, kind)
        assert_full(task, shortest, document, kind)
    else:
        assert_full(task, length, document, kind)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_document_has_its_answers_where_depth_says(task: RulerTask, sources: Sources) -> None:
    for document in made(task, 2048, [0, 5], sources):
        assert document.keys() - {"input_example"} == KEYS
        assert ("input_example" in document) == (task == "cwe")
        assert document["outputs"]
        assert all(output in document["input"] for output in document["outputs"] if task != "qa_hotpot")
        tokens = tokens_of(tokenizer_of("bytes"), task, document)
        if task in NEEDLES and len(document["outputs"]) == 1:
            before = tokenizer_of("bytes").decode(tokens[: round(document["depth"] * len(tokens))])
            assert document["input"].startswith(before.rstrip())
            assert document["input"][len(before.rstrip()) :].lstrip().startswith("One of the special magic")
            assert document["outputs"][0] not in before
        elif task in NEEDLES or task == "qa_squad":
            assert 0 <= document["depth"] < 1
        else:
            assert document["depth"] is None


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_document_is_the_same_whatever_else_is_made(task: RulerTask, sources: Sources) -> None:
    together = made(task, 1500, [0, 1, 2], sources)
    assert made(task, 1500, [2, 0], sources) == [together[2], together[0]]
    assert len({document["input"] for document in together}) == 3
    assert made(task, 1500, [0], sources, seed=4)[0]["input"] != together[0]["input"]


@pytest.mark.parametrize("words", [1, 7, 500, 27_341, 27_342, 27_343, 60_000])
def test_sentences_of_repeated_essays_are_those_that_punkt_finds(words: int) -> None:
    all_words = essay_text().split()
    assert len(all_words) == 27_342
    text = " ".join((all_words * 3)[:words])
    assert Essays(all_words).sentences(words) == PunktSentenceTokenizer().tokenize(text)


def test_a_tokenizer_that_does_not_know_the_words_is_refused(sources: Sources) -> None:
    documents = made("niah_single_1", 1024, [0], sources)
    for kind in KINDS:
        assert unknown_share(tokenizer_of(kind), "niah_single_1", documents) == 0
        check_known(tokenizer_of(kind), "niah_single_1", documents)
    tiny = load_tokenizer("builtin:tiny")
    assert unknown_share(tiny, "niah_single_1", documents) > 0.5
    with pytest.raises(EspanError, match=r"niah_single_1: \d\d\.\d% of the prompts' words are unknown"):
        check_known(tiny, "niah_single_1", documents)


def test_a_word_counts_as_unknown_where_one_letter_has_no_token() -> None:
    document = {"input": "the river is wide. " * 24 + "the ri\N{SNOWMAN}ver", "gen_prefix": "so is"}
    share = unknown_share(tokenizer_of("unigram"), "niah_single_1", [document])
    assert share == 1 / 100


def test_what_a_task_lacks_is_named(sources: Sources) -> None:
    with pytest.raises(EspanError, match="niah_single_2 needs essays"):
        made("niah_single_2", 2048, [0], Sources())
    with pytest.raises(EspanError, match="qa_squad needs a file of questions"):
        made("qa_squad", 2048, [0], Sources())
    with pytest.raises(EspanError, match=r"qa_hotpot.json: there are 60 questions, too few for 61 samples"):
        made("qa_hotpot", 2048, [60], sources)


def test_a_length_that_documents_cannot_fill_is_refused(sources: Sources) -> None:
    with pytest.raises(EspanError, match=r"qa_hotpot has no prompts of 200000 tokens .* ends at \d+"):
        made("qa_hotpot", 200_000, [0], sources)


def test_essays_are_the_text_files_of_a_folder_in_order(tmp_path: Any) -> None:
    with pytest.raises(EspanError, match=r"essays .*nowhere: no such folder"):
        read_essays(str(tmp_path / "nowhere"))
    with pytest.raises(EspanError, match=r"the folder holds no text file"):
        read_essays(str(tmp_path))
    (tmp_path / "b.txt").write_text("a dog.\n\n It ran.")
    (tmp_path / "a.txt").write_text("\ufeffOne cat and")
    (tmp_path / "c.md").write_text("not this")
    assert read_essays(str(tmp_path)).sentences(9) == ["One cat and a dog.", "It ran.", "One cat"]
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(EspanError, match=r"c.txt: the file holds no text"):
        read_essays(str(tmp_path))
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(EspanError, match=r"c.txt: not UTF-8"):
        read_essays(str(tmp_path))
