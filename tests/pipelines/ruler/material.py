"""Tokenizers of three kinds and a few questions, made of the essays that ship with the package."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.ruler import QuestionTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.essays import SHIPPED, read_essays
from pipelines.ruler.questions import read_questions

GIVEN = os.environ.get("ESPAN_TEST_TOKENIZER", "")
"""A folder or file of a tokenizer in real use, to be tested beside those that are trained here."""
KINDS = ("bytes", "digits", "unigram", *([GIVEN] if GIVEN else []))
_ENTRIES = 3000


def essay_text() -> str:
    return " ".join(path.read_text() for path in sorted(Path(SHIPPED).glob("*.txt")))


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """One with bytes for letters; one that also divides numbers and begins texts with <s>; one of pieces."""
    if kind == "unigram":
        return _unigram()
    if kind == GIVEN:
        return load_tokenizer(kind)
    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of]) if kind == "digits" else bytes_of
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_ENTRIES, special_tokens=["<s>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([essay_text()], trainer)
    if kind == "digits":
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    letters = [chr(number) for number in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=1000,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        initial_alphabet=[*letters, "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([essay_text()[:60_000]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def squad_data() -> dict[str, Any]:
    """Articles of four paragraphs, each asked for the word in its middle; every fifth has no answer."""
    words = essay_text().split()
    paragraphs = [" ".join(words[start : start + 90]) for start in range(0, len(words) - 90, 90)]
    articles = []
    for first in range(0, len(paragraphs) - 4, 4):
        article = []
        for number, text in enumerate(paragraphs[first : first + 4], start=first):
            answers = [{"text": text.split()[45]}, {"text": " ".join(text.split()[45:47])}]
            question = {"question": f"What is word {number}?", "answers": answers, "is_impossible": False}
            if number % 5 == 4:
                question |= {"answers": [], "is_impossible": True}
            article.append({"context": text, "qas": [question]})
        articles.append({"paragraphs": article})
    return {"version": "v2.0", "data": articles}


def hotpot_data() -> list[dict[str, Any]]:
    """Questions about three documents each."""
    lines = essay_text().split(". ")
    documents = [[f"Title {number}", lines[number * 4 : number * 4 + 4]] for number in range(180)]
    return [
        {
            "question": f"Who said {number}?",
            "answer": lines[number * 12][:9],
            "context": documents[at : at + 3],
        }
        for number, at in enumerate(range(0, len(documents), 3))
    ]


DATA = {"qa_squad": squad_data, "qa_hotpot": hotpot_data}


def sources_in(folder: Path) -> Sources:
    """Everything that a task may be made of."""
    questions = {}
    tasks: tuple[QuestionTask, ...] = ("qa_squad", "qa_hotpot")
    for task in tasks:
        place = folder / f"{task}.json"
        place.write_text(json.dumps(DATA[task]()))
        questions[task] = read_questions(task, str(place))
    return Sources(read_essays(None), questions)
