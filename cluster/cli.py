"""The `espan` command. Results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster import compare, jobs
from pipelines.errors import EspanError, InterruptedRunError, RecipeError, one_line
from pipelines.kinds import KINDS
from pipelines.system.disk import write_problem
from tuning.kinds import TUNING_KINDS

if TYPE_CHECKING:
    from pipelines.run.runner import RunSummary

FAILED, WRONG_RECIPE = 1, 2

KINDS.update(TUNING_KINDS)

app = typer.Typer(
    name="espan",
    help="Fit hybrid language models to long contexts: one recipe, from a laptop to a cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of one that ships, such as quickstart."
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Overrides one of the recipe's variables; may be repeated."
    ),
]


@app.command()
def run(recipe: RecipeArgument, settings: SettingsOption = None) -> None:
    """Run a recipe here; skips the stages that are finished and resumes an unfinished one."""
    from pipelines.recipe.parse import find_recipe
    from pipelines.recipe.variables import parse_settings
    from pipelines.run.runner import run_recipe

    show_run(run_recipe(find_recipe(recipe), parse_settings(settings or [])))


@app.command()
def plan(recipe: RecipeArgument, settings: SettingsOption = None) -> None:
    """Show what a recipe would do: stages, shapes and memory; refuses what cannot work."""
    from pipelines.recipe.parse import find_recipe
    from pipelines.recipe.variables import parse_settings
    from pipelines.run.plan import plan_recipe

    planned = plan_recipe(find_recipe(recipe), parse_settings(settings or []))
    print(f"{planned.name}: workspace {planned.workspace}")
    for stage in planned.stages:
        print(f"{stage.name} ({stage.kind}): {stage.action}")
        for label, text in stage.details.items():
            print(f"    {label}: {text}")


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a page for people instead: every key, type and default.")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes, by which editors complete and check keys."""
    from pipelines.recipe.reference import recipe_reference
    from pipelines.recipe.schema import recipe_schema

    text = recipe_reference(KINDS) if markdown else json.dumps(recipe_schema(KINDS), indent=2) + "\n"
    print(text, end="")


@app.command()
def report(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="A run's workspace, or its recipe.")],
    settings: SettingsOption = None,
) -> None:
    """Write a run's report from what is finished, and print its path."""
    from pipelines.recipe.parse import read_recipe
    from pipelines.recipe.variables import parse_settings
    from pipelines.report.run import build
    from pipelines.run.workspace import workspace_of
    from pipelines.system import storage

    workspace = run_folder
    if run_folder.endswith((".yaml", ".yml")):
        workspace = workspace_of(read_recipe(run_folder, parse_settings(settings or [])))
    if not storage.is_folder(workspace):
        raise EspanError(f"{workspace} is not a run's workspace; `espan run` prints it when it starts")
    print(build(workspace))


@app.command()
def doctor() -> None:
    """Check versions, cores, memory, disk, GPU, Ray and Terraform; exits with 1 if runs cannot work."""
    from cluster.doctor import examine

    checks = examine(Path.cwd())
    for check in checks:
        print(check)
    failed = [check.name for check in checks if check.failed]
    if failed:
        raise EspanError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


for _command in (compare.compare, jobs.submit, jobs.status, jobs.logs, jobs.stop):
    app.command()(_command)


def show_run(summary: RunSummary) -> None:
    """Prints the table that ends a run, where it lies and where its reports are."""
    table = Table("stage", "state", "time", "result", box=None, pad_edge=False, header_style="bold")
    for stage in summary.stages:
        table.add_row(f"{stage.name} ({stage.kind})", stage.state, duration(stage.seconds), stage.headline)
    # Lines in a file or a pipe are for other programs: they are not wrapped at some terminal's width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    print("everything was finished already" if not summary.ran else f"finished in {summary.workspace}")
    for page in summary.reports:
        print(f"report: {page}")


def duration(seconds: float) -> str:
    """Returns seconds as `7.3 s`, `2 min 5 s` or `1 h 2 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def main() -> None:
    """Runs the command line: one line on stderr and an exit code other than 0 when it fails."""
    _write_any_text()
    try:
        app()
    except RecipeError as error:
        _fail(error, WRONG_RECIPE)
    except InterruptedRunError as error:
        _fail(error, 128 + error.signal_number)
    except EspanError as error:
        _fail(error, FAILED)
    except OSError as error:
        _fail(EspanError(write_problem(error, None) or f"{type(error).__name__}: {error}"), FAILED)
    except Exception as error:
        if "ESPAN_TRACEBACK" in os.environ:
            raise
        what = one_line(f"{type(error).__name__}: {error}")
        _fail(EspanError(f"unexpected {what}; ESPAN_TRACEBACK=1 shows where"), FAILED)


def _write_any_text() -> None:
    """Shows what a terminal's encoding (`LC_ALL=C`, say) lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: EspanError, code: int) -> None:
    print(error if isinstance(error, RecipeError) else f"espan: {error}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
