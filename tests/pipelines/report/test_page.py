"""The page shows what the run found, opens from disk without a network, and is sound HTML."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.scores import Scores
from pipelines.recipe.keys.report import ReportKeys
from pipelines.report.evaluations import evaluations
from pipelines.report.outputs_view import parse_table
from pipelines.report.records import RunRecord, StageRecord
from pipelines.report.run import build, run
from tests.pipelines.report.parsed_page import Page

MakeWorkspace = Callable[..., Any]


@pytest.fixture(scope="module")
def html(make_workspace: MakeWorkspace) -> str:
    return Path(build(str(make_workspace().folder))).read_text(encoding="utf-8")


def test_elements_are_nested_properly(html: str) -> None:
    assert Page(html).text[0] == "small-run · Expansion Span"


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    page = Page(html)
    assert not [tag for tag, _, _ in page.attributes if tag in ("script", "link", "img", "iframe", "object")]
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "poster"):
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", html)


def test_every_link_within_the_page_has_one_target(html: str) -> None:
    page = Page(html)
    targets = Counter(value for _, name, value in page.attributes if name == "id")
    links = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    links |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert links <= set(targets)
    sections = {value for tag, name, value in page.attributes if (tag, name) == ("section", "id")}
    assert all(targets[section] == 1 for section in sections)


def test_charts_take_their_colours_from_the_page(html: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 3 + 4 + 3
    for chart in charts:
        assert "var(--" in chart
        assert not re.search(r"(fill|stroke): #", chart)
        assert "aria-label=" in chart


def test_what_was_found_of_what_was_asked_is_one_chart_and_the_last_step_by_head(
    html: str, make_workspace: MakeWorkspace
) -> None:
    assert "Needles found" not in html
    found = Path(build(str(make_workspace(found=True).folder))).read_text(encoding="utf-8")
    (chart,) = re.findall(r'<svg[^>]*aria-label="Needles found of tuned.*?</svg>', found, flags=re.DOTALL)
    assert {f"var(--series-{colour})" in chart for colour in (0, 1, 2)} == {True}
    text = " ".join(Page(found).text)
    assert "asked above not asked is relevance" in text
    assert "In step 30." in text
    cells = Page(found).cells
    at = cells.index("key/value head")
    assert cells[at - 1 : at + 3] == ["attention layer", "key/value head", "asked", "not asked"]
    assert cells[at + 3 : at + 11] == ["0", "0", "75.0%", "25.5%", "0", "1", "51.5%", "34.5%"]
    assert cells[at + 11 : at + 19] == ["1", "0", "–", "–", "1", "1", "–", "–"]


def test_the_summary_says_what_changed(html: str) -> None:
    text = " ".join(Page(html).text)
    assert "Recall at 2,048 tokens rose from 25% (before) to 75% (after)." in text
    assert "+50 points" in text
    assert "−11.1%" in text
    assert "30 steps" in text


def test_a_change_within_its_error_is_not_called_one(make_workspace: MakeWorkspace) -> None:
    page = Page(Path(build(str(make_workspace(after=0.28).folder))).read_text(encoding="utf-8"))
    assert "did not change beyond its error" in " ".join(page.text)
    # Only the perplexity's change is coloured then.
    assert [value for tag, name, value in page.attributes if (tag, name) == ("span", "class")] == ["", "good"]


def test_every_measured_recall_is_in_a_heat_map(html: str) -> None:
    page = Page(html)
    shades = [value for _, name, value in page.attributes if name == "style" and value.startswith("--v:")]
    assert Counter(shades) == {"--v: 1.000": 9 - 3, "--v: 0.250": 3, "--v: 0.750": 3}
    assert {"multi key", "single", "mean"} <= set(page.cells)


def test_every_part_of_the_run_has_its_section(html: str) -> None:
    page = Page(html)
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert sections == [
        "recall", "perplexity", "differences", "training", "data", "exports", "lineage", "recipe",
        "environment",
    ]  # fmt: skip
    for words in (
        "attention projections",
        "12.5%",
        "9.5e-7",
        "sequence_length: 2048",
        "torch",
        "36 training",
    ):
        assert words in html, words


def test_what_a_user_wrote_is_text_and_never_markup(make_workspace: MakeWorkspace) -> None:
    html = Path(build(str(make_workspace(source="<script>alert(1)</script>").folder))).read_text("utf-8")
    assert "<script>" not in html
    assert "<script>alert(1)</script>" in Page(html).cells


def test_a_run_that_has_only_begun_has_a_page_too(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace(until="corpus")
    page = Page(Path(build(str(workspace.folder))).read_text(encoding="utf-8"))
    assert "not run" in page.cells
    assert "Recall" not in page.text


def test_the_same_run_gives_the_same_page(make_workspace: MakeWorkspace) -> None:
    folder = str(make_workspace().folder)
    assert Path(build(folder)).read_bytes() == Path(build(folder)).read_bytes()


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match="no finished stage lies here"):
        build(str(tmp_path))


def test_the_stage_writes_its_page_and_tells_where(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    workspace.start("page")
    context = Context(
        "page", workspace.path("page"), 17, {}, str(workspace.folder), workspace.recipe.as_dict()
    )
    result = run(ReportKeys(), context)
    assert result["page"] == workspace.path("page/report.html")
    page = Page(Path(result["page"]).read_text(encoding="utf-8"))
    assert "release" in page.cells
    assert "page" not in page.cells


def test_the_table_of_a_study_is_shown_as_a_table() -> None:
    rows = ["| variant | recall | seeds |", "| --- | ---: | --- |", "| SE-Attn | 0.5 ± 0.1 | 3 |"]
    table = parse_table("\n".join(["Means.", "", *rows, "", "More"]))
    assert table is not None
    assert (table.columns, [row.cells for row in table.rows]) == (
        ["variant", "recall", "seeds"],
        [["SE-Attn", "0.5 ± 0.1", "3"]],
    )
    assert list(table.numeric) == [1, 2]
    assert parse_table("no table | here") is None


def test_the_model_that_was_trained_further_is_the_baseline(tmp_path: Path) -> None:
    def stage(name: str, kind: str, **keys: str) -> StageRecord:
        write = kind == "evaluate"
        if write:
            Scores(model=keys["model"], attention={}, precision="fp32", seed=0, seconds=0).write(
                str(tmp_path / name)
            )
        return StageRecord(name, kind, keys, str(tmp_path / name), {"result": {}}, True)

    stages = (
        stage("base", "train", model="new"),
        stage("tuned", "train", model="base"),
        stage("after", "evaluate", model="tuned"),
        stage("before", "evaluate", model="base"),
    )
    found = evaluations(RunRecord(str(tmp_path), {}, stages, {}))
    assert [(each.stage, each.colour) for each in found] == [("before", 0), ("after", 1)]
