"""lm-eval evaluates a task with this model as with its own."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.cache import cache_bytes
from pipelines.evaluate.language_model.encode import TooLongError
from pipelines.evaluate.language_model.model import EspanLM
from tests.pipelines.evaluate.language_model.tiny import instances, lm_eval_model

DOCUMENTS = [
    {"question": question, "choices": [" a tiny model", " rows"], "answer": number % 2}
    for number, question in enumerate(["A tiny", "What is it that", "rows and"])
]
# For each kind of request a task: what lm-eval's configuration of it says beside the documents.
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "continued": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e "], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    place = tmp_path_factory.mktemp("documents") / "documents.json"
    place.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(place)}}}
    tasks = [{"task": name, "test_split": "test", **source, **task} for name, task in TASKS.items()]

    def run(model):
        manager = TaskManager(include_defaults=False)
        found = simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
        answers = {
            name: [sample["filtered_resps"] for sample in samples]
            for name, samples in found["samples"].items()
        }
        return found["results"], answers

    return run


def flat(values):
    return [
        each for value in values for each in (flat(value) if isinstance(value, list | tuple) else [value])
    ]


def test_tasks_of_every_kind_have_the_scores_that_lm_evals_own_model_gives(model_of, tokenizer, evaluate):
    model = model_of("mamba2_hybrid")
    expected, expected_answers = evaluate(lm_eval_model(model, tokenizer))
    results, answers = evaluate(EspanLM(model, tokenizer))
    assert set(results) == set(TASKS)
    for name in TASKS:
        assert flat(answers[name]) == pytest.approx(flat(expected_answers[name]))
        numbers = {key: value for key, value in expected[name].items() if isinstance(value, float)}
        assert numbers
        assert {key: results[name][key] for key in numbers} == pytest.approx(numbers)


def test_requests_that_are_too_long_are_refused_before_any_is_answered(model_of, tokenizer):
    lm = EspanLM(model_of("llama"), tokenizer, max_length=12)
    long = "a prompt of more than a few tokens"
    with pytest.raises(TooLongError, match="a row may have 12"):
        lm.generate_until(
            instances("generate_until", ("a", {"max_gen_toks": 4}), (long, {"max_gen_toks": 4}))
        )
    with pytest.raises(TooLongError, match="a row may have 12"):
        lm.loglikelihood(instances("loglikelihood", ("a", "b"), (long, " x")))


def test_answers_come_in_the_order_of_the_requests_whatever_each_asks(model_of, tokenizer):
    model = model_of("llama")
    lm = EspanLM(model, tokenizer, max_length=256, cache_bytes=cache_bytes(model, 40))
    asked = [
        ("rows " * 9, {"max_gen_toks": 5}),
        ("a", {"until": ["e"], "max_gen_toks": 7}),
        ("rows", {"max_gen_toks": 9}),
    ]
    alone = [lm.generate_until(instances("generate_until", one))[0] for one in asked]
    assert lm.generate_until(instances("generate_until", *asked)) == alone


def test_chat_templates_are_refused(model_of, tokenizer):
    lm = EspanLM(model_of("llama"), tokenizer)
    assert lm.chat_template() == ""
    with pytest.raises(EspanError, match="leave apply_chat_template out"):
        lm.chat_template(True)
