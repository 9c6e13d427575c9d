"""A folder of prompts is a folder of lm-eval's tasks; it is written whole, and not again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager

from pipelines.errors import EspanError
from pipelines.recipe.keys.ruler import RulerTask
from pipelines.ruler import write as writing
from pipelines.ruler.compositions import Sources
from pipelines.ruler.tasks import answer_tokens
from pipelines.ruler.write import (
    PromptsKey,
    RulerManifest,
    TaskEntry,
    find_manifest,
    prompts_key,
    write_tasks,
)
from tests.pipelines.ruler.material import tokenizer_of

TASKS: tuple[RulerTask, ...] = ("niah_multivalue", "cwe", "qa_squad")
LENGTH = 1500


def key_of(sources: Sources, **changed: Any) -> PromptsKey:
    given: dict[str, Any] = {"tasks": TASKS, "lengths": (LENGTH,), "samples": 3, "seed": 5}
    given |= {"reference": "here", "tokenizer_sha256": "0"} | changed
    return prompts_key(tokenizer=tokenizer_of("digits"), sources=sources, **given)


def write(place: str, key: PromptsKey, sources: Sources) -> RulerManifest:
    """Writes all prompts, one task after another."""
    tokenizer = tokenizer_of("digits")

    def make() -> dict[tuple[RulerTask, int], TaskEntry]:
        return {
            each: writing.write_documents(place, key, *each, tokenizer=tokenizer, sources=sources)
            for each in itertools.product(key.tasks, key.lengths)
        }

    return writing.write(place, key, make)


@pytest.fixture
def folder(tmp_path: Path, sources: Sources) -> Path:
    place = tmp_path / "ruler"
    write(str(place), key_of(sources), sources)
    return place


class Reader(DummyLM):
    """Writes the first half of what it is asked for, and looks at how it is asked."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        super().__init__()
        self.tokenizer, self.answers = tokenizer_of("digits"), answers  # its own is on the hub

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked = [(request.arguments[0], request.arguments[1]["max_gen_toks"]) for request in requests]
        found = [self.answers[text] for text, _ in self.asked]
        return [" and ".join(outputs[: (len(outputs) + 1) // 2]) for outputs in found]


def test_lm_eval_finds_the_tasks_and_scores_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = {task: f"ruler_{task}_{LENGTH}" for task in TASKS}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    documents = {task: list(manager.load([name])["tasks"][name].test_docs()) for task, name in names.items()}
    joint = dict.fromkeys(TASKS, " ") | {"cwe": "\n\n"}
    answers = {
        document["input"] + joint[task] + document["gen_prefix"]: document["outputs"]
        for task in TASKS
        for document in documents[task]
    }
    model = Reader(answers)
    results = simple_evaluate(
        model=model, tasks=list(names.values()), task_manager=manager, bootstrap_iters=0
    )["results"]
    scores = {task: results[name][f"{LENGTH},none"] for task, name in names.items()}
    assert scores["niah_multivalue"] == scores["cwe"] == 0.5
    assert 0.5 <= scores["qa_squad"] <= 1  # its second answer begins with its first
    assert {len(each) for each in documents.values()} == {3}
    tokens = {text: len(model.tokenizer(text)["input_ids"]) for text in answers}
    assert sorted({limit for _, limit in model.asked}) == sorted({answer_tokens(task) for task in TASKS})
    for text, limit in model.asked:
        assert 0.99 * LENGTH <= tokens[text] + limit <= LENGTH
    for document in documents["cwe"]:
        assert document["depth"] is None


def test_prompts_that_are_there_are_not_made_again(
    folder: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(writing, "generate", None)
        same = key_of(sources, reference="elsewhere")
        write(str(folder), same, sources)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    data = folder / f"ruler_cwe_{LENGTH}" / "data.arrow"
    data.write_bytes(data.read_bytes()[:-1])
    write(str(folder), key_of(sources), sources)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"samples": 2}, {"tokenizer_sha256": "1"}, {"lengths": (1400,)}]
)
def test_other_prompts_are_replaced_and_other_files_stay(
    change: dict[str, Any], folder: Path, sources: Sources
) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "ruler_cwe_notes").mkdir()
    key = key_of(sources, tasks=("niah_single_1",), **change)
    manifest = write(str(folder), key, sources)
    assert find_manifest(str(folder)) == manifest
    names = {entry.name for entry in manifest.entries}
    assert {path.name for path in folder.iterdir()} == {
        *names,
        "manifest.json",
        "notes.txt",
        "ruler_cwe_notes",
    }


def test_the_key_holds_what_prompts_are_made_of(sources: Sources) -> None:
    key = key_of(sources)
    assert key.sources.keys() == {"essays", "qa_squad"}
    assert key.beginning == (0,)
    assert key_of(sources, tasks=("cwe",)).sources == {}


def test_a_folder_is_finished_by_its_manifest(tmp_path: Path, sources: Sources) -> None:
    place = str(tmp_path)
    key = key_of(sources, tasks=("niah_single_1", "niah_single_2"), lengths=(600, 100))
    with pytest.raises(EspanError, match=r"niah_single_1 has no prompts of 100 tokens"):
        write(place, key, sources)
    assert (tmp_path / "ruler_niah_single_1_600" / "data.arrow").exists()
    assert find_manifest(place) is None
    (tmp_path / "manifest.json").write_text('{"format": "espan-ruler/0"}')
    with pytest.raises(EspanError, match=r"manifest.json: not a manifest of format espan-ruler/1"):
        find_manifest(place)


def test_tasks_of_a_moved_folder_can_be_written_anew(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    manifest = find_manifest(str(moved))
    assert manifest is not None
    write_tasks(str(moved), manifest)
    for entry in manifest.entries:
        text = (moved / entry.name / f"{entry.name}.yaml").read_text()
        task = yaml.safe_load(text.replace("!function", ""))
        assert task["dataset_kwargs"]["data_files"]["test"] == str(moved / entry.name / "data.arrow")


def test_the_manifest_says_what_the_files_are(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    assert [entry["rows"] for entry in record["entries"]] == [3, 3, 3]
    assert record["key"]["tokenizer"] == "here"
