"""Tasks of lm-eval are scored by workers as lm-eval scores them with its own model."""

from __future__ import annotations

import logging
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
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
from tests.pipelines.evaluate.harness.small_tasks import make_tasks, task_file
from tests.tolerances import F32

NAMES = ("pick", "write", "read")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return make_tasks(tmp_path / "tasks")


@dataclass(frozen=True)
class Measured:
    tasks: Path
    output: str
    scores: Scores
    written: str


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, local_ray: None) -> Measured:
    """An evaluation of the three tasks by two workers, and what it wrote to standard error."""
    folder = tmp_path_factory.mktemp("measured")
    tasks, output = make_tasks(folder / "tasks"), folder / "scores"
    output.mkdir()
    keys = {"model": str(model_folder), "harness": {"tasks": NAMES, "include": str(tasks)}, "workers": 2}
    with redirect_stderr(StringIO()) as written:
        run(EvaluateKeys.model_validate(keys), Context("scores", str(output), 3, {}, str(folder), {}))
    return Measured(tasks, str(output), Scores.read(str(output)), written.getvalue())


def test_workers_give_the_scores_and_answers_of_lm_evals_own_model(
    measured: Measured, model: Mamba2HybridForCausalLM, model_folder: Path
) -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    expected = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=load_tokenizer(str(model_folder)), batch_size=1),
        tasks=list(NAMES),
        task_manager=task_manager(str(measured.tasks), builtin=False),
        bootstrap_iters=10,
    )
    assert expected is not None
    found = {(score.task, score.metric): score.value for score in measured.scores.of("harness")}
    assert set(found) == {
        ("pick", "acc"),
        ("pick", "acc_norm"),
        ("write", "exact_match (whole)"),
        ("write", "exact_match (word)"),
        ("read", "word_perplexity"),
        ("read", "bits_per_byte"),
    }
    for (task, metric), value in found.items():
        name, _, filtered = metric.partition(" (")
        theirs = expected["results"][task][f"{name},{filtered.rstrip(')') or 'none'}"]
        assert value == pytest.approx(theirs, rel=F32)
    samples = [sample for sample in read_samples(measured.output) if sample.task == "write"]
    texts = [sample["filtered_resps"][0] for sample in expected["samples"]["write"]]
    assert len(texts) == 2 * 3
    assert [sample.extras["prediction"] for sample in samples] == [[text] for text in texts]
    assert measured.scores.throughput[0].prompts == 9 + 3 + 3


def test_a_metric_that_is_no_mean_keeps_its_direction_and_has_an_interval(measured: Measured) -> None:
    found = {score.metric: score for score in measured.scores.of("harness")}
    assert {metric: score.higher_is_better for metric, score in found.items()} == {
        "acc": True,
        "acc_norm": True,
        "exact_match (whole)": True,
        "exact_match (word)": True,
        "word_perplexity": False,
        "bits_per_byte": False,
    }
    for metric in ("word_perplexity", "bits_per_byte"):
        assert found[metric].interval.low < found[metric].value < found[metric].interval.high


def test_neither_lm_eval_nor_data_sets_write_between_the_lines_of_progress(measured: Measured) -> None:
    lines = measured.written.splitlines()
    assert any(line.startswith("scores: harness") for line in lines)
    assert [line for line in lines if not line.startswith("scores: ")] == []


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
