"""From the same random numbers, and with as much haystack, a prompt is lm-eval's own, byte for byte."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import nltk
import numpy as np
import pytest
import wonderwords
from nltk.tokenize.punkt import PunktSentenceTokenizer

from pipelines.recipe.keys.ruler import NeedleTask, QuestionTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.draws import Draws
from pipelines.ruler.needles import NOISE, needle_prompt
from pipelines.ruler.prompts import Prompt
from pipelines.ruler.questions import question_prompt
from pipelines.ruler.score import score
from pipelines.ruler.tasks import NEEDLES
from pipelines.ruler.variables import solved_example, variable_prompt
from pipelines.ruler.word_counts import coded_words_prompt, common_words_prompt
from pipelines.ruler.word_lists import Pairs, key_words, listed_words
from tests.pipelines.ruler.material import KINDS, essay_text, hotpot_data, squad_data, tokenizer_of

ROOM = "lm_eval.tasks.ruler"
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?"
)
"""As in lm-eval's niah_utils.py."""


@pytest.fixture(autouse=True)
def global_generators() -> Iterator[None]:
    """Gives the process's own generators, which lm-eval draws from, a known state and back their own."""
    before = random.getstate(), np.random.get_state()
    random.seed(17)
    np.random.seed(17)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])


@pytest.fixture(scope="module")
def needle_module() -> Iterator[ModuleType]:
    """lm-eval's needles, imported without its download, with untrained Punkt, and words not all in memory."""
    few = SimpleNamespace(_categories={"nouns": ["fox"], "adjectives": ["old"], "verbs": ["run"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda name: name)
        patch.setattr(wonderwords, "RandomWord", lambda: few)
        module = importlib.import_module(f"{ROOM}.prepare_niah")
    module.WORDS = key_words()
    module.cached_sent_tokenize = PunktSentenceTokenizer().tokenize
    yield module
    del sys.modules[f"{ROOM}.prepare_niah"]


class Recorded:
    """A function of lm-eval's, and with what it was called last, and when."""

    def __init__(self, module: ModuleType, patch: pytest.MonkeyPatch, order: random.Random | None = None):
        self._function: Callable[..., Any] = module.generate_input_output
        self._order = order or random.Random()
        patch.setattr(module, "generate_input_output", self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.arguments = arguments
        self.draws = Draws(random.Random(), np.random.RandomState(), random.Random())
        self.draws.choices.setstate(random.getstate())
        self.draws.numbers.set_state(np.random.get_state())
        self.draws.order.setstate(self._order.getstate())
        self.result = self._function(*arguments, **named)
        return self.result


def assert_same(prompt: Prompt, document: dict[str, Any]) -> None:
    assert prompt.input == document["input"]
    assert prompt.gen_prefix == document["gen_prefix"]
    assert prompt.outputs == document["outputs"]
    assert prompt.input_example == document.get("input_example")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", get_args(NeedleTask))
def test_needles(
    task: NeedleTask, kind: str, needle_module: ModuleType, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    needles = NEEDLES[task]
    haystack = {"essay": essay_text().split(), "repeat": NOISE, "needle": NEEDLE}[needles.haystack]
    recorded = Recorded(needle_module, monkeypatch)
    (document,) = needle_module.generate_samples(
        haystack,
        tokenizer_of(kind),
        max_seq_length=2048,
        type_haystack=needles.haystack,
        type_needle_k=needles.key,
        type_needle_v=needles.value,
        template=TEMPLATE,
        num_samples=1,
        num_needle_k=1 if task == "niah_multiquery" else needles.keys,
        num_needle_v=needles.values,
        num_needle_q=needles.queries,
    )
    size = recorded.arguments[0]
    assert size > 1
    assert_same(needle_prompt(needles, size, recorded.draws, sources.essays), document)


@pytest.mark.parametrize("kind", KINDS)
def test_variables(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"{ROOM}.vt_utils")
    recorded = Recorded(module, monkeypatch)
    (theirs,) = module.sys_vartrack_w_noise_random(tokenizer_of(kind), 1, 800, incremental=5)
    example = solved_example(recorded.arguments[0], recorded.draws)
    assert example == theirs["input"] + " " + " ".join(theirs["outputs"]) + "\n\n"
    (document,) = module.sys_vartrack_w_noise_random(tokenizer_of(kind), 1, 2048, icl_example=theirs)
    assert_same(variable_prompt(recorded.arguments[0], recorded.draws, example), document)


@pytest.mark.parametrize("lines", [1, 2, 5, 6])
def test_variables_among_so_little_noise_that_it_is_divided(
    lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(importlib.import_module(f"{ROOM}.vt_utils"), monkeypatch)
    text, variables = recorded(lines, 1, 4, is_icl=True)
    assert solved_example(lines, recorded.draws) == text + " " + " ".join(variables) + "\n\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [2048, 4096])
def test_common_words(length: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"{ROOM}.cwe_utils")
    recorded = Recorded(module, monkeypatch, order=module.RNG)
    (document,) = module.sys_word_pair_random(1, length, tokenizer_of(kind))
    assert_same(common_words_prompt(length, recorded.arguments[0], recorded.draws), document)
    assert listed_words() == tuple(module.WORDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_coded_words(length: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"{ROOM}.fwe_utils")
    recorded = Recorded(module, monkeypatch)
    (document,) = module.sys_kwext(tokenizer_of(kind), length, num_samples=1)
    assert_same(coded_words_prompt(length, recorded.result[2], recorded.draws), document)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("task", get_args(QuestionTask))
def test_questions(
    task: QuestionTask, length: int, kind: str, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"{ROOM}.qa_utils")
    data = squad_data() if task == "qa_squad" else hotpot_data()
    monkeypatch.setattr(module, "download_json", lambda url: data)
    read = module.read_squad if task == "qa_squad" else module.read_hotpotqa
    questions, documents = read.__wrapped__()
    recorded = Recorded(module, monkeypatch)
    (document,) = module.generate_samples(
        tokenizer_of(kind), documents, questions, length, num_samples=1, pre_samples=7, incremental=3
    )
    index, size = recorded.arguments
    assert_same(question_prompt(sources.questions[task], index, size, recorded.draws), document)


def test_pairs_are_all_pairs_of_an_adjective_and_a_noun_in_order() -> None:
    lists = wonderwords.RandomWord()._categories
    hyphens = [word for word in lists["adjectives"] if "-" in word]
    # With what begins them, and with nouns among which theirs come to stand.
    adjectives = [*hyphens, *(word.split("-")[0] for word in hyphens), *lists["adjectives"][::20]]
    nouns = [*lists["nouns"][::50], "eyed", "eyed-fox", "Zebra"]
    pairs = Pairs(adjectives, nouns)
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    assert list(pairs) == expected
    assert pairs[-1] == expected[-1]
    assert len(key_words()) == 6_171_620


ANSWERS = (
    "1234567 and also 7654321.",
    "  Only the Old-Fox\x00 \n",
    "OLD-FOX, 1234567",
    "",
    "12345",
    "old-\x01fox",
)


@pytest.mark.parametrize("outputs", [["1234567"], ["1234567", "old-fox", "7654321"], ["old-\nfox", "x"]])
@pytest.mark.parametrize("metric", ["string_match_all", "string_match_part"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_scores(answer: str, metric: str, outputs: list[str]) -> None:
    module = importlib.import_module(f"{ROOM}.common_utils")
    theirs = getattr(module, metric)(module.postprocess_pred([answer]), [outputs])
    assert score(answer, outputs) == theirs
