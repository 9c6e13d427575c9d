"""The benchmark of lm-eval's requests: all sides answer the same, the fastest other is the measure."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import language_model
from benchmarks.language_model import OWN, pairs, prompts, rows, verdicts
from pipelines.evaluate.language_model.encode import Encoder
from pipelines.models.tokenizers import load_tokenizer

OTHERS = ["HFLM, batches of 1", "HFLM, batches of 2"]
KINDS = {"generate_until": 3, "loglikelihood": 4}


@pytest.fixture(scope="module")
def small():
    numbers = {"PROMPTS": 3, "SHORTEST": 120, "LONGEST": 150, "NEW_TOKENS": 2, "QUESTIONS": 2, "CHOICES": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**numbers, "BATCHES": (1, 2)}.items():
            patch.setattr(language_model, name, value)
        patch.setitem(language_model._SIZES, "vocab_size", 400)
        yield


@pytest.fixture(scope="module")
def result(small, tmp_path_factory):
    place = tmp_path_factory.mktemp("language_model") / "result.json"
    options = ["--repeats", "1", "--seconds", "0", "--threads", "1", "--output", str(place)]
    done = CliRunner().invoke(language_model.app, options)
    assert done.exit_code == 0, done.output
    return json.loads(place.read_text())


def test_every_side_answers_every_kind_of_request_for_every_model(result):
    assert [(r["model"], r["requests"], r["count"], r["by"]) for r in result["results"]] == [
        (model, kind, count, side)
        for model in language_model.models()
        for kind, count in KINDS.items()
        for side in (OWN, *OTHERS)
    ]
    assert all(record["seconds"] > 0 for record in result["results"])
    assert len(rows(result)) == len(result["results"])


def test_the_measure_is_lm_evals_own_at_its_fastest(result):
    for record in result["results"]:
        record["seconds"] = {OWN: 2.0, OTHERS[0]: 3.0, OTHERS[1]: 4.0}[record["by"]]
    assert [line[-2:] for line in verdicts(result)] == [("0.67", "yes")] * 4
    for record in result["results"]:
        record["seconds"] = 1.5 if record["by"] == OTHERS[1] else record["seconds"]
    assert [line[-2:] for line in verdicts(result)] == [("1.33", "no")] * 4


def test_prompts_and_contexts_have_unequal_lengths_and_no_two_pairs_are_one(small):
    tokenizer = load_tokenizer("builtin:tiny")
    lengths = [len(tokenizer.encode(request.args[0])) for request in prompts(tokenizer)]
    assert lengths == sorted(set(lengths))
    assert 110 <= lengths[0] < lengths[-1] <= 160
    encoder, asked = Encoder(tokenizer), [request.args for request in pairs(tokenizer)]
    assert len({encoder.pair(*pair).inputs for pair in asked}) == len(asked)
    contexts = {context for context, _ in asked}
    assert len({len(tokenizer.encode(context)) for context in contexts}) == 2
