"""Two evaluations are compared prompt by prompt."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.evaluate.scores import (
    Comparison,
    Difference,
    Evaluated,
    Measure,
    Sample,
    Scores,
    TaskScore,
    compare,
)


def samples(
    values: Sequence[float], task: str = "single", *, measure: Measure = "recall", length: int | None = 64,
    metric: str = "recall", drawn: str = "",
) -> list[Sample]:  # fmt: skip
    """Prompts with these values; `drawn` stands for what other prompts were drawn by."""
    return [
        Sample(
            measure=measure, task=task, length=length, index=index,
            prompt=f"{task}{length}{index}{drawn}", metric=metric, value=value,
        )
        for index, value in enumerate(values)
    ]  # fmt: skip


def evaluated(label: str, found: Sequence[Sample], tasks: Sequence[TaskScore] = ()) -> Evaluated:
    scores = Scores(model="", attention={}, precision="fp32", seed=0, seconds=1, tasks=tuple(tasks))
    return Evaluated(label, scores, found)


def only(comparisons: list[Comparison]) -> Comparison:
    (comparison,) = comparisons
    return comparison


def named(comparison: Comparison, task: str | None, length: int | None = 64) -> Difference:
    (row,) = (row for row in comparison.rows if (row.task, row.length) == (task, length))
    return row


def test_pairs_show_what_means_alone_would_hide() -> None:
    """Prompts differ far more among each other than the two evaluations do on each of them."""
    hard = np.random.default_rng(0).uniform(0, 1, 100)
    before = evaluated("before", samples(hard.tolist()))
    after = evaluated("after", samples((hard + np.linspace(0.01, 0.03, 100)).tolist()))
    row = named(only(compare(before, [after])), "single")
    assert row.difference == pytest.approx(0.02)
    assert row.interval.low > 0.018
    assert row.verdict == "better"
    assert hard.std() / 10 > row.difference


def test_what_chance_explains_is_no_real_difference() -> None:
    generator = np.random.default_rng(1)
    one, other = (
        evaluated(name, samples(generator.integers(0, 2, 64).tolist())) for name in ("one", "other")
    )
    assert named(only(compare(one, [other])), "single").verdict == "no real difference"


def test_of_what_should_be_low_less_is_better() -> None:
    loss = {"task": "perplexity", "measure": "perplexity", "metric": "loss"}
    values = np.random.default_rng(2).normal(3, 1, 50)
    before, after = (
        evaluated(name, samples((values - less).tolist(), **loss)) for name, less in (("a", 0.0), ("b", 0.1))
    )
    assert named(only(compare(before, [after])), "perplexity").verdict == "better"
    assert named(only(compare(after, [before])), "perplexity").verdict == "worse"
    errors = TaskScore.of("harness", "words", None, "errors", [1.0], higher_is_better=False)
    counted = {"task": "words", "measure": "harness", "metric": "errors", "length": None}
    before, after = (
        evaluated(name, samples((values - less).tolist(), **counted), [errors])
        for name, less in (("a", 0.0), ("b", 0.1))
    )
    assert named(only(compare(before, [after])), "words", None).verdict == "better"


def test_prompts_that_differ_are_not_paired_and_counted() -> None:
    before = evaluated("before", [*samples([1.0] * 8), *samples([0.0] * 4, "multi_key")])
    after = evaluated(
        "after",
        [*samples([0.0] * 6), *samples([0.0] * 2, "multi_key", drawn="else"), *samples([1.0], length=8)],
    )
    comparison = only(compare(before, [after]))
    assert [(row.task, row.length, row.prompts) for row in comparison.rows] == [("single", 64, 6)]
    assert (comparison.unequal, comparison.unmatched) == (2, 2 + 2 + 1)


def test_a_prompt_with_several_metrics_is_counted_once() -> None:
    both = [
        *samples([1.0] * 3, "arc", measure="harness", metric="acc", length=None),
        *samples([0.0] * 3, "arc", measure="harness", metric="acc_norm", length=None),
    ]
    other = [*samples([1.0] * 3, "arc", measure="harness", metric="acc", length=None, drawn="else")]
    comparison = only(compare(evaluated("a", both), [evaluated("b", both)]))
    assert [(row.metric, row.prompts) for row in comparison.rows] == [("acc", 3), ("acc_norm", 3)]
    assert only(compare(evaluated("a", both), [evaluated("b", other)])).unequal == 3


def test_every_length_has_its_mean_over_tasks_and_groups_have_theirs() -> None:
    tasks = ("niah_1", "niah_2", "vt")
    groups = {"niah_1": "needles", "niah_2": "needles", "vt": "tracing"}
    scores = [
        TaskScore.of("ruler", task, length, "match", [1.0], group=groups[task])
        for task in tasks
        for length in (64, 8)
    ]
    ruler = {"measure": "ruler", "metric": "match"}

    def found(values: dict[str, list[float]]) -> list[Sample]:
        return [
            sample
            for task in tasks
            for length in (64, 8)
            for sample in samples(values[task], task, length=length, **ruler)
        ]

    before = evaluated("before", found({"niah_1": [0.0] * 4, "niah_2": [0.0] * 4, "vt": [1.0] * 2}), scores)
    after = evaluated("after", found({"niah_1": [1.0] * 4, "niah_2": [0.0] * 4, "vt": [0.5] * 2}), scores)
    rows = only(compare(before, [after])).rows
    parts = [(None, None), (None, "needles"), ("niah_1", "needles"), ("niah_2", "needles"), ("vt", "tracing")]
    assert [(row.length, row.task, row.group) for row in rows] == [
        (n, *part) for n in (64, 8) for part in parts
    ]
    assert [row.difference for row in rows[:5]] == pytest.approx([(1 + 0 - 0.5) / 3, 0.5, 1.0, 0.0, -0.5])
    assert [row.baseline for row in rows[:2]] == pytest.approx([1 / 3, 0.0])
    assert [row.value for row in rows[:2]] == pytest.approx([0.5, 0.5])
    assert [row.prompts for row in rows[:2]] == [10, 8]


def test_the_more_rows_the_more_must_a_difference_be() -> None:
    values = [1.0] * 9 + [-1.0] * 2 + [0.0] * 29
    before = evaluated("before", samples([0.0] * 40))
    after = evaluated("after", samples(values))
    alone = named(only(compare(before, [after])), "single")
    assert alone.probability < 0.05
    many = [evaluated(f"other {number}", samples([0.0] * 40)) for number in range(9)]
    first, *_ = compare(before, [after, *many])
    assert named(first, "single").probability == pytest.approx(min(1, alone.probability * 10))
    assert named(first, "single").verdict == "no real difference"
