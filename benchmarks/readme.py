"""The parts of ``README.md`` that committed results decide: ``python -m benchmarks.readme`` rewrites them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import context_parallel, language_model, miniature, recurrence
from benchmarks.run import FORMAT
from benchmarks.tables import HEADINGS, left_out_lines, rows
from benchmarks.targets import HEADINGS as TARGET_HEADINGS
from benchmarks.targets import cells, verdicts

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
BEGIN = "<!-- attention: begin; written by python -m benchmarks.readme -->"
END = "<!-- attention: end -->"
SHARED_BEGIN = "<!-- context parallelism: begin; written by python -m benchmarks.readme -->"
SHARED_END = "<!-- context parallelism: end -->"
RECURRENCE_BEGIN = "<!-- recurrence: begin; written by python -m benchmarks.readme -->"
RECURRENCE_END = "<!-- recurrence: end -->"
ANSWERS_BEGIN = "<!-- answers: begin; written by python -m benchmarks.readme -->"
ANSWERS_END = "<!-- answers: end -->"
MINIATURE_BEGIN = "<!-- miniature: begin; written by python -m benchmarks.miniature -->"
MINIATURE_END = "<!-- miniature: end -->"


def newest_results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The newest result of each device, where it lies and what it says; the CPU's before the GPU's."""
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("attention-*.json")):
        result = json.loads(path.read_text())
        device = result["setting"]["device"]
        if result["format"] == FORMAT and (
            device not in newest or newest[device][1]["measured"] <= result["measured"]
        ):
            newest[device] = (path, result)
    return [newest[device] for device in sorted(newest)]


def section(folder: Path) -> str:
    """Targets, then for each device the machine, the table, what was left out, and the pictures."""
    found = newest_results(folder)
    parts = [_markdown(TARGET_HEADINGS, [cells(one) for one in verdicts([result for _, result in found])])]
    return "\n\n".join([*parts, *(_describe(path, result) for path, result in found)])


def _describe(path: Path, result: dict[str, Any]) -> str:
    machine, versions, setting = result["machine"], result["versions"], result["setting"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    chunks = " and ".join(f"{size:,}" for size in setting["chunk_sizes"])
    place = f"results/{path.stem}"
    out = [f"- {line}" for line in left_out_lines(result)]
    return "\n\n".join(
        [
            f"### {where}",
            f"{setting['heads']} heads of {setting['head_dim']}, {setting['kv_heads']} key/value heads, "
            f"chunks of {chunks}, {setting['top_k']} blocks of {setting['block_size']}, {setting['dtype']}; "
            f"torch {versions['torch']}, commit {versions['code'].get('commit', 'unknown')}, "
            f"{result['measured'][:10]}; load before {machine['load_before']}. All of it: `{place}.json`.",
            _markdown(tuple(heading.replace("\n", " ").strip() for heading in HEADINGS), rows(result)),
            *(["Left out:\n" + "\n".join(out)] if out else []),
            f"![Time and memory by length]({place}-cost.png)",
            f"![Share of the FLOP floor by length]({place}-floor.png)",
        ]
    )


def _markdown(headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in headings)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))


def rewrite(text: str, folder: Path) -> str:
    """The README with what attention costs made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    return _replace(text, BEGIN, END, section(folder))


def rewrite_shared(text: str, result: dict[str, Any]) -> str:
    """The README with what context parallelism exchanges made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    parts = [
        _measured_on(result, context_parallel.OUTPUT),
        _markdown(context_parallel.HEADINGS, context_parallel.rows(result)),
        "\n".join(f"- {line}" for line in context_parallel.verdicts(result)),
        _markdown(context_parallel.LARGE_HEADINGS, context_parallel.large_rows(result)),
    ]
    return _replace(text, SHARED_BEGIN, SHARED_END, "\n\n".join(parts))


def rewrite_recurrence(text: str, result: dict[str, Any]) -> str:
    """The README with what the recurrence costs made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    parts = [*_found_by(recurrence, result, recurrence.OUTPUT), *_recurrences_on_a_gpu()]
    return _replace(text, RECURRENCE_BEGIN, RECURRENCE_END, "\n\n".join(parts))


def rewrite_answers(text: str, result: dict[str, Any]) -> str:
    """The README with how fast requests of lm-eval are answered made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    parts = _found_by(language_model, result, language_model.OUTPUT)
    return _replace(text, ANSWERS_BEGIN, ANSWERS_END, "\n\n".join(parts))


def _recurrences_on_a_gpu() -> list[str]:
    if not recurrence.GPU_OUTPUT.exists():
        return ["On a GPU, beside the kernels of mamba-ssm and flash-linear-attention: not yet measured."]
    return _found_by(recurrence, json.loads(recurrence.GPU_OUTPUT.read_text()), recurrence.GPU_OUTPUT)


def _found_by(benchmark: ModuleType, result: dict[str, Any], file: Path) -> list[str]:
    """Where it was measured, the table, and the targets."""
    return [
        _measured_on(result, file),
        _markdown(benchmark.HEADINGS, benchmark.rows(result)),
        _markdown(benchmark.TARGET_HEADINGS, benchmark.verdicts(result)),
    ]


def _measured_on(result: dict[str, Any], file: Path) -> str:
    host, versions = result["machine"], result["versions"]
    commit = versions["code"].get("commit", "unknown")
    return (
        f"{host['processor']}; torch {versions['torch']}, commit {commit}, {result['measured'][:10]}; "
        f"load before {host['load_before']}. All of it: `results/{file.name}`."
    )


def rewrite_miniature(text: str, result: dict[str, Any]) -> str:
    """The README with the tables of the miniature recipe made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    versions, machine = result["versions"], result["machine"]
    commit = versions["code"].get("commit", "unknown")
    where = ", ".join(str(value) for value in machine.values())
    head = f"{where}; torch {versions['torch']}, commit {commit}, {result['measured'][:10]}."
    return _replace(text, MINIATURE_BEGIN, MINIATURE_END, f"{head}\n\n{miniature.tables(result)}")


def _replace(text: str, begin: str, end: str, content: str) -> str:
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"README.md lacks the markers {begin!r} and {end!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    text = rewrite(README.read_text(), RESULTS)
    for write, file in (
        (rewrite_shared, context_parallel.OUTPUT),
        (rewrite_recurrence, recurrence.OUTPUT),
        (rewrite_answers, language_model.OUTPUT),
        (rewrite_miniature, miniature.OUTPUT),
    ):
        text = write(text, json.loads(file.read_text()))
    README.write_text(text)
