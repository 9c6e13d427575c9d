"""The numbers in scores.json, and the files themselves."""

import json
import math
from pathlib import Path

import pytest

from pipelines.errors import EspanError
from pipelines.evaluate.scores import (
    DepthScore,
    PerplexityScore,
    PositionBin,
    Sample,
    Scores,
    TaskScore,
    Throughput,
    prompt_hash,
    read_samples,
    write_samples,
)

EXACT = 1e-12
EARLIER = {
    "format": "espan-scores/1",
    "model": "tuned",
    "attention": {"kind": "span"},
    "precision": "fp32",
    "seed": 3,
    "recall": [
        {"task": "single", "length": 64, "samples": 4, "answers": 4}
        | {"recall": 0.75, "standard_error": 0.25, "exact": 0.5}
    ],
    "perplexity": [
        {"length": 64, "windows": 2, "scored_tokens": 20, "loss": 2.0}
        | {"perplexity": math.exp(2.0), "standard_error": 0.1}
    ],
    "retrieval": [{"length": 64, "asked": 0.5, "chance": 0.25, "asked_by_head": [[0.25, 0.75]]}],
    "seconds": 1.0,
    "machine": {"cpus": 2},
    "versions": {"torch": "2"},
}


def scores(**changes: object) -> Scores:
    given = {
        "model": "tuned",
        "attention": {"kind": "full"},
        "precision": "fp32",
        "seed": 3,
        "seconds": 1.0,
        "tasks": (
            TaskScore.of_recall("single", 64, [[True], [False]]),
            TaskScore.of_recall("multi_query", 64, [[True, True], [True, True]]),
            TaskScore.of_recall("single", 32, [[True], [True]]),
            TaskScore.of("harness", "arc_easy", None, "acc", [0.0, 1.0, 1.0]),
        ),
        "perplexity": (PerplexityScore.of(64, 10, [10.0, 30.0]),),
    }
    return Scores.model_validate(given | changes)


def test_recall_is_the_mean_over_prompts_of_the_fraction_of_answers_given() -> None:
    score = TaskScore.of_recall(
        "multi_query", 64, [[True, False], [True, True], [False, False], [True, True]]
    )
    assert score.value == pytest.approx((0.5 + 1 + 0 + 1) / 4, abs=EXACT)
    assert score.exact == 0.5
    assert (score.samples, score.answers) == (4, 8)


def test_an_interval_holds_its_value_and_narrows_with_prompts() -> None:
    few, many = (TaskScore.of("ruler", "qa", 64, "accuracy", [0.0, 1.0] * n) for n in (10, 1000))
    for score in (few, many):
        assert score.interval.low < score.value < score.interval.high
    assert many.interval.high - many.interval.low < (few.interval.high - few.interval.low) / 5


def test_answers_are_summed_up_where_their_needles_stand() -> None:
    answers = [(0.0, 1.0), (0.09, 0.0), (0.95, 1.0), (1.0, 1.0)]
    assert DepthScore.by_depth(answers) == (
        DepthScore(low=0.0, high=0.1, samples=2, value=0.5),
        DepthScore(low=0.9, high=1.0, samples=2, value=1.0),
    )


def test_perplexity_is_the_exponential_of_the_mean_loss_per_token() -> None:
    score = PerplexityScore.of(64, 10, [10.0, 30.0])
    assert score.loss == pytest.approx(2.0, abs=EXACT)
    assert score.perplexity == pytest.approx(math.exp(2.0), rel=EXACT)
    assert (score.windows, score.scored_tokens) == (2, 20)
    assert score.standard_error == pytest.approx(1.0, abs=EXACT)
    assert (score.interval.low, score.interval.high) == pytest.approx((math.exp(1), math.exp(3)))


def test_the_loss_of_positions_is_per_token() -> None:
    bin_ = PositionBin.of(16, 19, [4.0, 12.0])
    assert (bin_.tokens, bin_.loss) == (8, pytest.approx(2.0, abs=EXACT))
    assert (bin_.interval.low, bin_.interval.high) == pytest.approx((1.0, 3.0))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(EspanError, match="not a number"):
        PerplexityScore.of(64, 10, [1.0, loss])


def test_the_mean_over_tasks_weighs_every_task_alike() -> None:
    found = scores().mean_at("recall", 64)
    assert found is not None
    assert found.value == pytest.approx(0.75, abs=EXACT)
    # 0 to 1 of one task and 1 to 1 of the other.
    assert (found.interval.low, found.interval.high) == pytest.approx((0.5, 1.0))
    two = tuple(TaskScore.of("ruler", task, 8, "accuracy", [0.0, 1.0]) for task in ("a", "b"))
    both = scores(tasks=two).mean_at("ruler", 8)
    assert both is not None
    assert (both.interval.low, both.interval.high) == pytest.approx((0.5 - 0.5**1.5, 0.5 + 0.5**1.5))
    single = scores().score_at("recall", "single", 64)
    assert single is not None
    assert single.value == 0.5
    assert scores().mean_at("recall", 128) is None
    assert scores().mean_at("ruler", 64) is None
    assert scores().lengths("recall") == (32, 64)
    assert scores().lengths("harness") == ()


def test_throughput_is_tokens_by_time() -> None:
    found = Throughput.of("ruler", prompts=4, tokens=4096, seconds=2.0)
    assert found.tokens_per_second == 2048


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    scores().write(str(tmp_path))
    assert Scores.read(str(tmp_path)) == scores()


def test_what_was_retrieved_is_read_back_and_left_out_where_nothing_was(tmp_path: Path) -> None:
    scores().write(str(tmp_path))
    assert "retrieval" not in json.loads((tmp_path / "scores.json").read_text())
    by_depth = [{"low": 0.1, "high": 0.2, "asked": 0.5, "asked_by_layer": [0.5, None]}]
    shares = {"length": 64, "asked": 0.5, "chance": 0.25, "asked_by_head": [[0.25, 0.75], [None, None]]}
    retrieved = scores(retrieval=[shares | {"asked_by_depth": by_depth, "never_chosen": 0.125}])
    retrieved.write(str(tmp_path))
    assert Scores.read(str(tmp_path)) == retrieved


def test_the_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(EARLIER))
    found = Scores.read(str(tmp_path))
    (single,) = found.of("recall")
    assert (single.value, single.samples, single.exact, single.metric) == (0.75, 4, 0.5, "recall")
    assert (single.interval.low, single.interval.high) == pytest.approx((0.75 - 0.49, 1.0))
    (perplexity,) = found.perplexity
    assert perplexity.interval.low == pytest.approx(math.exp(2 - 0.196))
    assert perplexity.interval.high == pytest.approx(math.exp(2 + 0.196))
    assert found.retrieval[0].asked_by_head == ((0.25, 0.75),)
    assert (found.machine, found.versions) == (EARLIER["machine"], EARLIER["versions"])
    found.write(str(tmp_path))
    assert Scores.read(str(tmp_path)) == found


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    for read in (Scores.read, read_samples):
        with pytest.raises(EspanError, match="run the evaluate stage"):
            read(str(tmp_path))


CONTENTS = ["{}", "[]", "[", '{"format": "espan-scores/9"}', '{"format": "espan-scores/1", "recall": [{}]}']


@pytest.mark.parametrize("content", CONTENTS)
def test_another_format_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(EspanError, match=r"scores\.json.*espan-scores/2") as refused:
        Scores.read(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_samples_are_read_back_with_all_they_hold(tmp_path: Path) -> None:
    given = [
        Sample(
            measure="ruler", task="qa", length=64, index=0, prompt="ab", metric="accuracy", value=1.0,
            prediction="one\u2028two\x85three\n", depth=0.25,
        ),
        Sample(measure="harness", task="arc", index=1, prompt="cd", metric="acc", value=0.0),
    ]  # fmt: skip
    write_samples(str(tmp_path), given)
    assert read_samples(str(tmp_path)) == given
    assert read_samples(str(tmp_path))[0].extras == {"prediction": "one\u2028two\x85three\n", "depth": 0.25}


def test_samples_that_do_not_name_their_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(
        '{"task": "single", "length": 64, "index": 0, "answers": [true]}\n'
    )
    with pytest.raises(EspanError, match=r"samples\.jsonl.*run the evaluate stage again"):
        read_samples(str(tmp_path))


def test_prompts_with_the_same_hash_are_the_same() -> None:
    assert prompt_hash([1, 2, 3]) == prompt_hash((1, 2, 3))
    assert len({prompt_hash([1, 2, 3]), prompt_hash([1, 2]), prompt_hash([12, 3]), prompt_hash("123")}) == 4
