"""What retrieval is worth at a small scale: from a run of the miniature recipe to the committed tables.

``python -m benchmarks.miniature`` reads the studies below ``runs/miniature`` and writes
``results/miniature.json`` and the tables in ``README.md``; ``make miniature`` runs the recipe first.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.system.storage import write_json_atomic
from pipelines.system.versions import code_version
from tuning.study.table import RESULTS_FILE

FORMAT = "espan-miniature/1"
OUTPUT = Path(__file__).parent / "results" / "miniature.json"
STUDIES = {
    "attentions": "Rows of 2,048 tokens, 8 to 16 needles in each:",
    "crowds": "Rows of 2,048 tokens, 13 to 27 needles in each, of which a chunk asks one or two:",
    "longer": "Rows of 4,096 tokens, 4 of up to 496 blocks:",
}
"""The recipe's comparisons, and what stands above their tables."""

app = typer.Typer(add_completion=False)


def collect(workspace: Path) -> dict[str, Any]:
    """The results of every study of a run, with the machine and the versions that they were measured with.

    Studies that have no result yet are left out.

    Raises:
        FileNotFoundError: if none has any; names the workspace.
    """
    found = {name: workspace / name / RESULTS_FILE for name in STUDIES}
    studies = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    if not studies:
        raise FileNotFoundError(errno.ENOENT, "no study has a result", str(workspace))
    scores = json.loads(next(workspace.glob("*/*/scores/scores.json")).read_text())
    return {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": "pipelines/recipes/miniature.yaml",
        "machine": scores["machine"],
        "versions": {**scores["versions"], "code": code_version()},
        "studies": studies,
    }


def tables(result: Mapping[str, Any]) -> str:
    """Every study's table in Markdown, and what is missing of those that have not finished."""
    parts = []
    for name, heading in STUDIES.items():
        study = result["studies"].get(name)
        if study is None:
            parts.append(heading.removesuffix(":") + ": not run yet.")
            continue
        missing = study["trials"] - study["finished"]
        note = f" ({missing} of {study['trials']} trainings are missing)" if missing else ""
        parts += [heading.removesuffix(":") + note + ":", _table(study["rows"])]
    return "\n\n".join(parts)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@app.command()
def main(
    workspace: Annotated[Path, typer.Argument(help="The run's workspace.")] = Path("runs/miniature"),
) -> None:
    """Writes results/miniature.json and the README's tables from a run of the miniature recipe."""
    from benchmarks.readme import README, rewrite_miniature

    try:
        result = collect(workspace)
    except FileNotFoundError as error:
        raise typer.BadParameter(
            f"{error.filename}: {error.strerror}; espan run pipelines/recipes/miniature.yaml makes them"
        ) from error
    write_json_atomic(str(OUTPUT), result)
    README.write_text(rewrite_miniature(README.read_text(), result))
    typer.echo(tables(result))


if __name__ == "__main__":
    app()
