"""A stage's line says something of each thing that was measured."""

from pipelines.evaluate.headline import headline, means
from pipelines.evaluate.scores import PerplexityScore, TaskScore
from tests.pipelines.evaluate.test_scores import scores

RULER = (
    TaskScore.of("ruler", "vt", 4096, "string_match", [1.0, 1.0]),
    TaskScore.of("ruler", "vt", 8192, "string_match", [0.0, 0.5]),
    TaskScore.of("ruler", "cwe", 8192, "string_match", [1.0, 1.0]),
)
HARNESS = (
    TaskScore.of("harness", "arc_easy", None, "acc", [0.0, 1.0]),
    TaskScore.of("harness", "arc_easy", None, "acc_norm", [1.0, 1.0]),
    TaskScore.of("harness", "piqa", None, "acc", [1.0, 1.0]),
)


def test_each_measure_is_named_at_its_greatest_length() -> None:
    recall = TaskScore.of_recall("single", 64, [[True], [False]])
    found = scores(
        tasks=(recall, *RULER, *HARNESS),
        perplexity=(PerplexityScore.of(64, 1, [0.0]), PerplexityScore.of(32, 1, [1.0])),
    )
    assert headline(found) == (
        "recall 50.0% at 64, perplexity 1.00 at 64, RULER 62.5% at 8,192, arc_easy acc 0.5 and 1 more"
    )
    assert means(found, "ruler") == {4096: 1.0, 8192: 0.625}


def test_what_was_not_measured_is_not_named() -> None:
    assert headline(scores(tasks=HARNESS[-1:], perplexity=())) == "piqa acc 1"
    assert headline(scores(tasks=RULER[:1], perplexity=())) == "RULER 100.0% at 4,096"
