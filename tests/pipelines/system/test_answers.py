"""An answer is remembered as long as it is right, and found again whenever it is not there whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pipelines.models.configuration import Described
from pipelines.models.tokenizer_answers import bos_of, bos_text_of, check_remembered, identity_of
from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.recipe.keys.train import TrainKeys
from pipelines.system import answers, installed
from pipelines.system.answers import remembered
from pipelines.system.node_cache import VARIABLE
from pipelines.train.plan.memory.count import Counted, Rows
from tests.pipelines.train.conftest import SPAN

LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / answers.FOLDER


class Asked:
    """Answers with what it is given, and counts how often."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.times = answer, 0

    def __call__(self) -> Any:
        self.times += 1
        return self.answer


@pytest.mark.parametrize("answer", [None, 0, "", [], {"a": [1, 2.5, None]}, "ä\ud800", float("inf"), False])
def test_any_answer_is_remembered(answer: Any) -> None:
    ask = Asked(answer)
    assert remembered(["it"], ask) == remembered(["it"], ask) == answer
    assert ask.times == 1
    assert remembered(["something else"], Asked(1)) == 1


@pytest.mark.parametrize("question", [None, {"a day": object()}])
def test_what_cannot_be_told_apart_is_not_remembered(question: Any) -> None:
    ask = Asked(1)
    assert remembered(question, ask) == remembered(question, ask) == 1
    assert ask.times == 2


def test_what_fails_or_changes_meanwhile_is_not_remembered() -> None:
    def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            remembered("it", fail)
    ask = Asked(1)
    remembered("it", ask, lambda: False)
    remembered("it", ask)
    assert ask.times == 2


def test_code_that_changed_since_the_process_began_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked(1)
    with monkeypatch.context() as changed:
        changed.setattr(installed, "_BEGAN", 0)  # as if every file were written after that
        remembered("it", ask)
        assert installed.code_identity.__wrapped__() is None
    remembered("it", ask)
    assert ask.times == 2


def _other_answer(path: Path) -> None:
    path.write_text(path.read_text().replace('"right"', '"wrong"'))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "another answer": _other_answer,
    "another shape": lambda path: path.write_text("[1]"),
    "no answer": lambda path: path.write_text("{}"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": _folder,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_entry_is_found_anew(cache: Path, how: str) -> None:
    remembered("it", Asked("right"))
    (path,) = cache.iterdir()
    BROKEN[how](path)
    ask = Asked("right")
    assert remembered("it", ask) == remembered("it", ask) == "right"
    assert ask.times == (2 if how == "a folder" else 1)
    assert list(cache.iterdir()) == [path], "something was left behind"


def test_only_so_many_are_kept_and_those_used_last(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_KEPT", 10)
    monkeypatch.setattr(answers, "KEPT_THEN", 5)
    for number in range(10):
        remembered(number, Asked(number))
    for age, path in enumerate(sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (1000 + age, 1000 + age))
    remembered(0, Asked(0))  # the oldest is used
    remembered(10, Asked(10))
    assert len(list(cache.iterdir())) == 5
    for number in (0, 10):
        ask = Asked(number)
        remembered(number, ask)
        assert ask.times == 0


WRITER = """
import sys
from pathlib import Path
from pipelines.system.answers import remembered
from pipelines.system.node_cache import cache_root
for turn in range(60):
    answer = remembered("it", lambda: ["x" * 100_000, 1])
    assert answer == ["x" * 100_000, 1]
    if turn % 3 == int(sys.argv[1]):
        for file in (cache_root() / "answers").glob("*.json"):
            file.unlink(missing_ok=True)
remembered("it", lambda: ["x" * 100_000, 1])
"""


def test_processes_that_write_at_once_read_whole_answers(cache: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for writer in writers:
        _, problem = writer.communicate(timeout=120)
        assert writer.returncode == 0, problem
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["answer"] == ["x" * 100_000, 1]


def model_in(folder: Path, **keys: Any) -> Described:
    folder.mkdir(exist_ok=True)
    AutoConfig.for_model("llama", **LLAMA | keys).save_pretrained(folder)
    return Described.in_folder(folder)


def train(**keys: Any) -> TrainKeys:
    plain = {
        "data": "x",
        "model": "builtin:tiny",
        "attention": SPAN,
        "steps": 1,
        "tokens_per_step": 1024,
        "learning_rate": 1.0,
        "precision": "fp32",
    }
    return TrainKeys.model_validate(plain | keys)


LORA = {"rank": 4, "alpha": 8, "variant": "lora"}
CHANGES: list[dict[str, Any]] = [
    {},
    {"attention": {"kind": "window", "window": 32}},
    {"hylora": LORA},
    {"hylora": LORA | {"rank": 8}},
    {"precision": "bf16"},
    {"micro_batch_rows": 2},
    {"activation_checkpointing": True},
    {"workers": 2, "deepspeed": {"zero": 3}},
    {"workers": 2, "context_parallel": 2},
]


def test_remembered_memory_is_what_is_counted_whatever_key_changes(tmp_path: Path) -> None:
    known, rows = model_in(tmp_path / "model"), Rows(64, packed=True)

    def fail() -> Any:
        raise AssertionError("counted again")

    fresh = Counted(known.load(), rows)
    found = {}
    for number, keys in enumerate(CHANGES):
        first, second = Counted(known, rows), Counted(replace(known, load=fail), rows)
        stage = train(**keys)
        found[number] = fresh.parts(stage, gpu=True)
        assert first.parts(stage, gpu=True) == found[number]
        assert second.parts(stage, gpu=True) == found[number]
        assert first.loading_bytes(stage) == second.loading_bytes(stage) == fresh.loading_bytes(stage)
    assert len(set(found.values())) == len(CHANGES), "a key makes no difference"
    for other in (Rows(128, packed=True), Rows(64, packed=False)):
        assert Counted(known, other).parts(train(), gpu=True) == Counted(known.load(), other).parts(
            train(), gpu=True
        )
    assert Counted(known, rows).parts(train(), gpu=False) == fresh.parts(train(), gpu=False)


def test_a_changed_configuration_is_asked_anew(tmp_path: Path) -> None:
    rows = Rows(64, packed=True)
    found = []
    for keys in ({}, {"hidden_size": 64}, {"num_hidden_layers": 3}, {"vocab_size": 65}, {}):
        known = model_in(tmp_path / "model", **keys)
        words = known.remembered("words", None, lambda configuration: configuration.vocab_size)
        assert words == {**LLAMA, **keys}["vocab_size"]
        found.append(Counted(known, rows).parts(train(), gpu=True))
    assert found[0] == found[-1]
    assert len(set(found)) == 4


def test_a_configuration_that_changes_while_it_is_asked_about_is_not_remembered(tmp_path: Path) -> None:
    known = model_in(tmp_path / "model")

    def change_first(_: Any) -> int:
        return int(model_in(tmp_path / "model", vocab_size=99).load().vocab_size)

    assert known.remembered("words", None, change_first) == 99
    before = model_in(tmp_path / "model")
    assert before.remembered("words", None, lambda configuration: configuration.vocab_size) == 64


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_changed_tokenizer_is_asked_anew(tmp_path: Path, name: str) -> None:
    load_tokenizer("builtin:tiny").save_pretrained(tmp_path / "it")
    reference = str(tmp_path / "it")
    file = tmp_path / "it" / name
    content = json.loads(file.read_text())

    def as_loaded() -> None:
        tokenizer = load_tokenizer(reference)
        for _ in range(2):
            check_remembered(reference)
            assert identity_of(reference)[:2] == (tokenizer_hash(tokenizer), len(tokenizer))
            assert identity_of(reference)[2] == tokenizer.eos_token_id

    as_loaded()
    assert bos_of(reference, "auto") is None
    end = load_tokenizer(reference).eos_token
    if name == "tokenizer.json":
        part = {"SpecialToken": {"id": end, "type_id": 0}}
        special = {end: {"id": end, "ids": [load_tokenizer(reference).eos_token_id], "tokens": [end]}}
        template = {"type": "TemplateProcessing", "single": [part, {"Sequence": {"id": "A", "type_id": 0}}]}
        template |= {"pair": template["single"], "special_tokens": special}
        file.write_text(json.dumps(content | {"post_processor": template}))
    else:
        file.write_text(json.dumps(content | {"bos_token": end, "add_bos_token": True}))
    as_loaded()
    bos = bos_of(reference, "auto")
    assert bos == load_tokenizer(reference).eos_token_id
    assert bos_of(reference, False) is None
    assert bos_text_of(reference, bos, "auto") == f"with {end} (as the tokenizer does by default)"
