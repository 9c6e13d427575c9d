"""Puts a run's parts together into one HTML file that needs nothing beside it and runs no script."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.report import lineage_view, outputs_view, summary_view, training_view
from pipelines.report.differences_view import differences_section
from pipelines.report.evaluations import Pairs, evaluations
from pipelines.report.harness_view import harness_section
from pipelines.report.perplexity_view import perplexity_section
from pipelines.report.records import RunRecord
from pipelines.report.retrieval_view import retrieval_section
from pipelines.report.tasks_view import tasks_section

_FOLDER = Path(__file__).parent


def render(run: RunRecord) -> str:
    """Returns the page of a run."""
    found = evaluations(run)
    pairs = Pairs.of(found)
    sections = [
        tasks_section("ruler", found),
        tasks_section("recall", found),
        perplexity_section(found),
        harness_section(found),
        differences_section(found, pairs),
        retrieval_section(found),
        training_view.section(run),
        *outputs_view.other_sections(run),
        outputs_view.data_section(run),
        outputs_view.export_section(run),
        lineage_view.lineage_section(run),
        lineage_view.recipe_section(run),
        lineage_view.environment_section(run, found),
    ]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        run={"name": run.recipe["name"], "subtitle": lineage_view.subtitle(run)},
        summary={
            "lead": summary_view.lead(found, pairs),
            "tiles": [*summary_view.tiles(found, pairs), *training_view.tiles(run)],
        },
        sections=[section for section in sections if section is not None],
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        footer=f"Written from {run.workspace}",
    )
