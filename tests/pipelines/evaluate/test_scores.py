"""The numbers in scores.json, and the file itself."""

import json
import math
from pathlib import Path

import pytest

from pipelines.errors import EspanError
from pipelines.evaluate.scores import PerplexityScore, RecallScore, Scores

EXACT = 1e-12


def scores(**changes: object) -> Scores:
    given = {
        "model": "tuned",
        "attention": {"kind": "full"},
        "precision": "fp32",
        "seed": 3,
        "seconds": 1.0,
        "recall": (
            RecallScore.of("single", 64, [[True], [False]]),
            RecallScore.of("multi_query", 64, [[True, True], [True, True]]),
            RecallScore.of("single", 32, [[True], [True]]),
        ),
        "perplexity": (PerplexityScore.of(64, 10, [10.0, 30.0]),),
    }
    return Scores.model_validate(given | changes)


def test_recall_is_the_mean_over_prompts_of_the_fraction_of_answers_given() -> None:
    score = RecallScore.of("multi_query", 64, [[True, False], [True, True], [False, False], [True, True]])
    assert score.recall == pytest.approx((0.5 + 1 + 0 + 1) / 4, abs=EXACT)
    assert score.exact == 0.5
    assert (score.samples, score.answers) == (4, 8)


def test_the_standard_error_is_that_of_a_mean() -> None:
    score = RecallScore.of("single", 64, [[True], [True], [True], [False]])
    variance = (3 * 0.25**2 + 0.75**2) / 3
    assert score.standard_error == pytest.approx(math.sqrt(variance / 4), abs=EXACT)


def test_one_prompt_has_no_spread() -> None:
    assert RecallScore.of("single", 64, [[True]]).standard_error == 0


def test_perplexity_is_the_exponential_of_the_mean_loss_per_token() -> None:
    score = PerplexityScore.of(64, 10, [10.0, 30.0])
    assert score.loss == pytest.approx(2.0, abs=EXACT)
    assert score.perplexity == pytest.approx(math.exp(2.0), rel=EXACT)
    assert (score.windows, score.scored_tokens) == (2, 20)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(EspanError, match="not a number"):
        PerplexityScore.of(64, 10, [1.0, loss])


def test_the_mean_over_tasks_weighs_every_task_alike() -> None:
    assert scores().recall_at(64) == pytest.approx(0.75, abs=EXACT)
    assert scores().recall_at(64, "single") == 0.5
    assert scores().recall_at(128) is None
    assert scores().recall_lengths == (32, 64)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    scores().write(str(tmp_path))
    assert Scores.read(str(tmp_path)) == scores()


def test_what_was_retrieved_is_read_back_and_left_out_where_nothing_was(tmp_path: Path) -> None:
    scores().write(str(tmp_path))
    assert "retrieval" not in json.loads((tmp_path / "scores.json").read_text())
    shares = {"length": 64, "asked": 0.5, "chance": 0.25, "asked_by_head": [[0.25, 0.75], [None, None]]}
    retrieved = scores(retrieval=[shares])
    retrieved.write(str(tmp_path))
    assert Scores.read(str(tmp_path)) == retrieved


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match="run the evaluate stage"):
        Scores.read(str(tmp_path))


@pytest.mark.parametrize("content", ["{}", "[", json.dumps({"format": "espan-scores/9"})])
def test_another_format_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(EspanError, match=r"scores\.json.*espan-scores/1"):
        Scores.read(str(tmp_path))
