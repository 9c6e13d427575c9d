"""Tasks of lm-eval are scored by workers as lm-eval scores them with its own model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from pipelines.context import Context
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.evaluate.harness.tasks import check_names, expanded, load_tasks, task_manager
from pipelines.evaluate.run import run
from pipelines.evaluate.scores import Scores, read_samples
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.evaluate import EvaluateKeys
from se_model import Mamba2HybridForCausalLM
from tests.tolerances import F32

QUESTIONS = [
    {"question": "the river is", "choices": ["green", "a long road", "blue"], "answer": 1},
    {"question": "one of the", "choices": ["notes", "rivers", "keys"], "answer": 0},
    {"question": "here", "choices": ["we go", "again", "and back"], "answer": 2},
]


def task_file(folder: Path, name: str, data: Path, **changes: Any) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks: one of choices, one of generated text, one of whole texts."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    choice = {"doc_to_target": "answer", "doc_to_choice": "{{choices}}", "output_type": "multiple_choice"}
    task_file(folder, "pick", data, **choice, metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}])
    task_file(
        folder,
        "write",
        data,
        doc_to_target="{{choices[answer]}}",
        output_type="generate_until",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    task_file(
        folder,
        "read",
        data,
        doc_to_text="",
        doc_to_target="{{question}}",
        output_type="loglikelihood_rolling",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    return folder


@pytest.mark.usefixtures("local_ray")
def test_workers_give_the_scores_and_answers_of_lm_evals_own_model(
    tasks: Path, tmp_path: Path, model: Mamba2HybridForCausalLM, model_folder: Path
) -> None:
    names = ("pick", "write", "read")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    expected = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=load_tokenizer(str(model_folder)), batch_size=1),
        tasks=list(names),
        task_manager=task_manager(str(tasks), builtin=False),
        bootstrap_iters=10,
    )
    keys = {"model": str(model_folder), "harness": {"tasks": names, "include": str(tasks)}, "workers": 2}
    output = tmp_path / "scores"
    output.mkdir()
    run(EvaluateKeys.model_validate(keys), Context("scores", str(output), 3, {}, str(tmp_path), {}))
    scores = Scores.read(str(output))
    assert expected is not None
    found = {(score.task, score.metric): score.value for score in scores.of("harness")}
    assert set(found) == {
        ("pick", "acc"),
        ("pick", "acc_norm"),
        ("write", "exact_match"),
        ("read", "word_perplexity"),
        ("read", "bits_per_byte"),
    }
    for (task, metric), value in found.items():
        assert value == pytest.approx(expected["results"][task][f"{metric},none"], rel=F32)
    written = [sample for sample in read_samples(str(output)) if sample.task == "write"]
    texts = [sample["filtered_resps"][0] for sample in expected["samples"]["write"]]
    assert [sample.extras["prediction"] for sample in written] == [[text] for text in texts]
    assert scores.throughput[0].prompts == 9 + 3 + 3


@pytest.fixture(scope="module")
def builtin() -> Any:
    return task_manager(None)


def test_an_unknown_task_is_refused_with_the_nearest_name(builtin: Any) -> None:
    with pytest.raises(InvalidKeyError, match="'helaswag' is no task") as refused:
        check_names(["arc_easy", "helaswag"], builtin)
    assert refused.value.key == "harness.tasks.1"
    assert refused.value.suggestion == "hellaswag"


def test_the_papers_lists_are_tasks_that_lm_eval_has(builtin: Any) -> None:
    names = expanded(["paper_short", "paper_long", "arc_easy"])
    check_names(names, builtin)
    assert len(names) == 9


def test_a_data_set_that_is_not_at_hand_is_named_with_how_to_bring_it(tasks: Path) -> None:
    task_file(tasks, "gone", tasks / "nowhere.jsonl", doc_to_target="answer", output_type="generate_until")
    manager = task_manager(str(tasks), builtin=False)
    with pytest.raises(EspanError, match=r"task 'gone' cannot be loaded: .*nowhere.jsonl.*HF_HOME"):
        load_tasks(["pick", "gone"], manager, fewshot=None)


def test_shots_are_as_the_recipe_says_unless_a_task_has_none_by_its_own_rule(tasks: Path) -> None:
    data = tasks / "questions.jsonl"
    task_file(tasks, "bare", data, doc_to_target="answer", output_type="generate_until", num_fewshot=0)
    manager = task_manager(str(tasks), builtin=False)
    for asked, expected in ((None, 0), (2, 2)):
        loaded = load_tasks(["pick", "bare"], manager, fewshot=asked)["tasks"]
        assert loaded["pick"].get_config("num_fewshot") == expected
        assert loaded["bare"].get_config("num_fewshot") == 0
