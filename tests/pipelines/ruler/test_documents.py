"""Training documents of RULER's tasks: the answer behind the prompt is right, and no evaluation asks it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.ruler import RULER_TASKS, RulerDocuments, RulerTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.documents import Documents, TooShortError
from pipelines.ruler.essays import read_essays
from pipelines.ruler.generate import generate

TOKENS = 703
NEEDLES = tuple(task for task in RULER_TASKS if task.startswith("niah"))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("builtin:ruler-tiny")


def documents(tasks: Sequence[RulerTask], *, tokens: int = TOKENS, seed: int = 3) -> Documents:
    return Documents(RulerDocuments.model_validate({"tokens": tokens, "tasks": tasks}), seed, tokenizer())


@pytest.mark.parametrize("tokens", [400, TOKENS])
@pytest.mark.parametrize("task", RULER_TASKS)
def test_a_document_has_the_length_that_is_asked_for_with_its_answer(task: RulerTask, tokens: int) -> None:
    if task == "cwe" and tokens == 400:
        tokens = 600  # ten words six times each take more
    for index in range(4):
        text = documents([task], tokens=tokens).document(index)
        assert 0.99 * tokens - 1 <= len(tokenizer()(text)["input_ids"]) <= tokens


@pytest.mark.parametrize("task", NEEDLES)
def test_a_needle_task_is_answered_with_the_values_of_the_keys_asked_for(task: RulerTask) -> None:
    for index in range(4):
        text = documents([task]).document(index)
        asked = re.search(r"\nWhat (?:is|are all) the special magic \w+ for (.*?) mentioned in", text)
        assert asked is not None
        keys = re.split(r", (?:and )?", asked[1])
        stated = [re.findall(rf"for {re.escape(key)} is: ([\w-]+)\.", text) for key in keys]
        assert all(stated)
        values = [value for of_key in stated for value in of_key]
        _, _, answer = text.rpartition(" is " if len(values) == 1 else " are ")
        assert sorted(answer.split(", ")) == sorted(values)


def test_variable_tracking_is_answered_with_the_variables_of_the_chain() -> None:
    for index in range(4):
        _, _, problem = documents(["vt"]).document(index).rpartition("Memorize and track")
        value = re.search(r"assigned the value (\d+) in", problem)
        assert value is not None
        chain = re.findall(rf"VAR (\w+) = {value[1]}", problem)
        links = dict(re.findall(r"VAR (\w+) = VAR (\w+)", problem))
        while more := [name for name, before in links.items() if before in chain and name not in chain]:
            chain += more
        assert problem.endswith(f"they are: {' '.join(chain)}")
        assert len(chain) == 5


def test_lists_of_words_are_answered_with_the_most_frequent() -> None:
    for index in range(4):
        listed, _, answer = documents(["cwe"]).document(index).rpartition("Question:")
        counts = Counter(re.findall(r"\d+\. (\S+)", listed))
        numbered = re.findall(r"(\d+)\. (\S+)", answer)
        assert [number for number, _ in numbered] == [str(number) for number in range(1, 11)]
        assert {word for _, word in numbered} == {word for word, _ in counts.most_common(10)}

        coded, _, answer = documents(["fwe"]).document(index).rpartition("\nQuestion:")
        counts = Counter(word for word in coded.partition("coded words. ")[2].split() if "." not in word)
        _, _, words = answer.rpartition("are: ")
        assert words.split(", ") == [word for word, _ in counts.most_common(3)]


@pytest.mark.parametrize("task", NEEDLES)
def test_no_document_asks_what_an_evaluation_asks_whatever_its_seed_and_length(task: RulerTask) -> None:
    prompts = generate(
        task,
        TOKENS,
        indices=range(6),
        seed=3,
        tokenizer=tokenizer(),
        sources=Sources(read_essays(None)),
    )
    asked = {value for prompt in prompts for value in prompt["outputs"]}
    texts = [documents([task], seed=3).document(index) for index in range(6)]
    assert not any(value in text for value in asked for text in texts)


def test_a_document_is_that_of_its_seed_and_index_and_tasks_take_turns() -> None:
    tasks: tuple[RulerTask, ...] = ("niah_single_1", "fwe", "vt")
    made = documents(tasks)
    backwards = [made.document(index) for index in reversed(range(6))]
    assert backwards == [documents(tasks).document(index) for index in reversed(range(6))]
    assert len(set(backwards)) == 6
    assert made.document(0) != documents(tasks, seed=4).document(0)
    assert made.document(0) != documents(tasks, tokens=TOKENS + 1).document(0)
    assert [made.task_of(index) for index in range(4)] == [*tasks, "niah_single_1"]


def test_a_document_that_cannot_be_so_short_says_how_short_it_can_be() -> None:
    with pytest.raises(TooShortError, match=r"niah_multiquery has \d+ tokens at least") as refusal:
        documents(["niah_multiquery"], tokens=200).document(0)
    documents(["niah_multiquery"], tokens=refusal.value.tokens + 20).document(0)  # other keys
