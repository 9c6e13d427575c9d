"""How the run came about, as parts of the page: its stages, its recipe, and the versions behind it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from pipelines.report.blocks import Code, Row, Section, Table, TableRow
from pipelines.report.evaluations import Evaluation
from pipelines.report.harness_view import throughput_table
from pipelines.report.records import RunRecord, StageRecord
from pipelines.report.text import compact, duration
from pipelines.system.machine import bytes_text

_DECISIVE = (
    "python",
    "expansion-span",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "ray",
    "pyarrow",
    "numpy",
    "safetensors",
    "tokenizers",
)
_DASH = "–"


def lineage_section(run: RunRecord) -> Section:
    """Every stage, what it was made from, and when."""
    # A report stage that is writing this page has no record yet, and a page that exists needs none.
    rows = [_row(stage) for stage in run.stages if stage.finished or stage.kind != "report"]
    text = (
        "A fingerprint stands for everything that decides what a stage writes: its keys, the seed, the files "
        "it reads and the stages it uses. Equal fingerprints mean equal results."
    )
    columns = ["stage", "kind", "uses", "result", "ended (UTC)", "time", "fingerprint"]
    return Section("lineage", "Lineage", text, [Row([Table(columns, rows, numeric=(5,))])])


def recipe_section(run: RunRecord) -> Section:
    """The recipe as it ran, with every default spelt out."""
    text = "With every default spelt out; run again, it gives the same results."
    written = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True, width=100)
    return Section("recipe", "Recipe", text, [Row([Code(written.strip())])])


def environment_section(run: RunRecord, found: Sequence[Evaluation]) -> Section:
    """Versions, code and machine of the last stage, and how fast evaluations were."""
    record = run.latest
    code = ", ".join(f"{name} {value}" for name, value in record["code"].items())
    machine = record["machine"]
    described = (
        f"{machine['platform']}, {machine['cpus']} CPUs, {bytes_text(machine['memory_bytes'])} of memory"
    )
    rows = [TableRow(["code", code]), TableRow(["machine", described])]
    rows += [TableRow([name, record["versions"][name]]) for name in _DECISIVE if name in record["versions"]]
    note = f"Versions of all {len(record['versions'])} packages lie in every stage's stage.json."
    speeds = throughput_table(found)
    blocks = [Row([Table(["", ""], rows)]), *([Row([speeds])] if speeds else [])]
    return Section("environment", "Environment", note, blocks)


def subtitle(run: RunRecord) -> str:
    """When the run ended, how long its stages took, which seed, and which code."""
    ended = str(run.latest["ended"])[:16].replace("T", " ")
    seconds = sum(float(stage.finished["seconds"]) for stage in run.stages if stage.finished)
    code = run.latest["code"]
    version = code.get("commit", code["version"])
    return f"{ended} UTC · {duration(seconds)} · seed {run.recipe['seed']} · code {version}"


def _row(stage: StageRecord) -> TableRow:
    if not stage.finished:
        return TableRow([stage.name, stage.kind, _DASH, stage.state, _DASH, _DASH, _DASH])
    record = stage.finished
    files = len(record["files"])
    uses = [*record["inputs"], *([f"{files} file{'s' if files > 1 else ''}"] if files else [])]
    return TableRow(
        [
            stage.name,
            stage.kind,
            ", ".join(uses) or _DASH,
            _headline(stage),
            str(record["ended"])[:19].replace("T", " "),
            duration(float(record["seconds"])),
            str(record["fingerprint"])[:12],
        ]
    )


def _headline(stage: StageRecord) -> str:
    if "headline" in stage.result:
        return str(stage.result["headline"]).replace("->", "→")
    plain = [(name, value) for name, value in stage.result.items() if isinstance(value, str | int | float)]
    return ", ".join(
        f"{name.replace('_', ' ')} {compact(value) if isinstance(value, float) else value}"
        for name, value in plain[:2]
    )
