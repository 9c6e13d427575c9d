"""What evaluations measured is on the page: by group, depth, position and layer, and how they differ."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.scores import Scores, TaskMeasure
from pipelines.report.run import build
from tests.pipelines.report.full_scores import BINS, LAYERS, LENGTHS
from tests.pipelines.report.parsed_page import Page

MakeWorkspace = Callable[..., Any]


@pytest.fixture(scope="module")
def workspace(make_workspace: MakeWorkspace) -> Any:
    return make_workspace(full=True)


@pytest.fixture(scope="module")
def html(workspace: Any) -> str:
    return Path(build(str(workspace.folder))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def after(workspace: Any) -> Scores:
    return Scores.read(workspace.path("after"))


def tables(page: Page, *head: str) -> list[dict[str, list[str]]]:
    """The body of every table whose head begins so, by the first cells of its rows."""
    found = (table for table in page.tables if tuple(table[0][: len(head)]) == head)
    return [{first: rest for first, *rest in table[1:]} for table in found]


def test_tasks_of_a_group_are_one_row_and_each_has_its_own_below(page: Page, after: Scores) -> None:
    _, of_after, _, every_task = tables(page, "task", "4K", "8K", "16K", "32K", "64K", "128K")[:4]
    assert list(of_after) == ["NIAH-S", "NIAH-M", "NIAH-M-QV", "VT", "CF-WE", "QA", "mean"]
    for column, length in enumerate(LENGTHS):
        questions = [after.score_at("ruler", task, length) for task in ("qa_squad", "qa_hotpot")]
        mean = sum(score.value for score in questions if score) / 2
        assert of_after["QA"][column] == f"{mean:.0%}"
        assert [every_task[f"qa {name}"][column] for name in ("squad", "hotpot")] == [
            f"{score.value:.0%}" for score in questions if score
        ]


@pytest.mark.parametrize(("measure", "place"), [("ruler", 1), ("recall", 3)])
def test_a_score_by_depth_is_of_all_tasks_that_know_depths(
    page: Page, after: Scores, measure: TaskMeasure, place: int
) -> None:
    table = tables(page, "depth")[place]
    assert list(table) == [f"{low}–{low + 10}%" for low in range(0, 100, 10)]
    for column, length in enumerate(LENGTHS):
        found = [
            depth
            for score in after.of(measure)
            for depth in score.depths
            if score.length == length and depth.low == 0.3
        ]
        answers = sum(depth.samples for depth in found)
        share = sum(depth.value * depth.samples for depth in found) / answers
        assert table["30–40%"][column] == f"{share:.0%}"


def test_perplexity_by_position_is_a_line_in_a_band_and_a_table(html: str, page: Page, after: Scores) -> None:
    (chart,) = re.findall(r'<svg[^>]*aria-label="Perplexity by position".*?</svg>', html, flags=re.DOTALL)
    lines = re.findall(r'<path d="([^"]*)"[^>]*fill: none; stroke: var\(--series-\d', chart)
    assert [line.count("L") for line in lines] == [BINS - 1] * 2
    assert len(re.findall(r"fill: var\(--series-\d\)[^\"]*opacity: 0.18", chart)) == 2
    (table,) = tables(page, "tokens")
    assert len(table) == BINS
    last = after.positions[0].bins[-1]
    assert table[f"{last.first:,}–{last.last:,}"][1] == f"{math.exp(last.loss):.2f}"


def test_retrieval_is_shown_by_layer_and_length_and_depth(page: Page, after: Scores) -> None:
    by_length = tables(page, "layer", "4K")[1]
    assert len(by_length) == LAYERS + 1
    longest = after.retrieval[-1]
    assert by_length["all"][-1] == f"{longest.asked:.0%}"
    assert by_length["2"][-1] == f"{sum(map(float, longest.asked_by_head[2])) / 2:.0%}"  # type: ignore[arg-type]
    by_depth = tables(page, "layer", "0%", "10%")[1]
    assert by_depth["1"][4] == f"{longest.asked_by_depth[4].asked_by_layer[1]:.0%}"
    assert by_depth["3"] == ["–"] * len(longest.asked_by_depth)


def test_the_summary_speaks_of_ruler_where_it_was_measured(page: Page) -> None:
    assert any(text.startswith("RULER score at 131,072 tokens rose from") for text in page.text)


def test_differences_are_paired_and_those_of_tasks_folded(html: str, page: Page) -> None:
    heads = ["", "length", "prompts", "before", "after", "difference", "95% interval", "verdict"]
    short, every = (table[1:] for table in page.tables if table[0] == heads)
    assert short[0][:3] == ["RULER: mean of all tasks", "4,096", "520"]
    assert [row[1] for row in short[:6]] == [f"{length:,}" for length in LENGTHS]
    assert {row[-1] for row in short} == {"better"}
    assert every[0][0] == "RULER: NIAH-S, mean"
    assert {row[-1] for row in every} == {"better", "no real difference"}
    assert html.count("<details") == 5  # every task of both evaluations, positions, differences, speeds
    assert "Holm" in html
    verdicts = re.findall(r'<tr class="verdict-(\w+)">', html)
    assert set(verdicts) == {"good"}
    assert len(verdicts) == sum(row[-1] == "better" for row in [*short, *every])


def test_evaluations_of_an_earlier_version_have_a_page_without_pairs(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    for stage in ("before", "after"):
        scores = json.loads(Path(workspace.path(stage), "scores.json").read_text())
        earlier = {
            name: value for name, value in scores.items() if name not in ("tasks", "positions", "throughput")
        }
        score = {"task": "single", "length": 2048, "samples": 4, "answers": 4}
        earlier |= {
            "format": "espan-scores/1",
            "recall": [score | {"recall": 0.5, "standard_error": 0.1, "exact": 0.5}],
            "perplexity": [],
        }
        Path(workspace.path(stage), "scores.json").write_text(json.dumps(earlier))
        Path(workspace.path(stage), "samples.jsonl").write_text('{"task": "single", "length": 2048}\n')
    text = " ".join(Page(Path(build(str(workspace.folder))).read_text(encoding="utf-8")).text)
    assert "Recall at 2,048 tokens did not change beyond its error: 50% (before), 50% (after)." in text
    assert "Not compared prompt by prompt:" in text
    assert "run the evaluate stage again." in text
