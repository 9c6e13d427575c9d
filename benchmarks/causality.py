"""How often the paper's choice of blocks lets a later token change an earlier output:
``python -m benchmarks.causality --text FILE --text FILE``.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.lookahead import look_ahead
from benchmarks.reader import BYTES, check_reader, draw_rows, make_reader, read_text
from benchmarks.records import describe_machine
from pipelines.errors import EspanError
from pipelines.system.machine import cpu_count
from pipelines.system.storage import content_hash, write_json_atomic
from pipelines.system.versions import code_version
from se_model import SpanConfig

FORMAT = "espan-causality-benchmark/1"
OUTPUT = Path(__file__).parent / "results" / "causality.json"
SHARES = (0.25, 0.5, 0.75)
NOTES = Console(stderr=True)

app = typer.Typer(add_completion=False)


def run(
    texts: list[Path], models: list[str], spans: list[SpanConfig], length: int, steps: int, seed: int
) -> dict[str, Any]:
    """Measures every model under every selection. Returns what the JSON file holds."""
    host = describe_machine("cpu")
    for reference in models:
        check_reader(reference)
    books = [read_text(path) for path in texts]
    measured = []
    for reference in models:
        NOTES.print(f"{reference}: {f'reading for {steps} steps' if reference == BYTES else 'loading'} ...")
        reader = make_reader(reference, books, steps=steps, seed=seed)
        rows = draw_rows(reader, books, length, seed)
        unknown = 0.0 if reader.unknown is None else float((rows == reader.unknown).double().mean())
        results = []
        for span in spans:
            NOTES.print(f"{reference}: selection {span.selection} ...")
            results += look_ahead(reader.model, span, rows, SHARES)
        measured.append(
            {
                "model": reference,
                "parameters": reader.parameters,
                "unknown_tokens": unknown,
                "training_loss": reader.training_loss,
                "results": results,
            }
        )
    options = spans[0].options(layer=0, step=0)
    return {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "code": code_version(),
        },
        "seed": seed,
        "setting": {
            "length": length,
            "chunk_size": options.chunk_size,
            "block_size": options.block_size,
            "top_k": options.top_k,
            "summary": options.summary,
            "training_steps": steps,
        },
        "texts": [{"name": path.name, "sha256": content_hash(str(path))} for path in texts],
        "models": measured,
    }


def table(result: dict[str, Any]) -> Table:
    """What a terminal shows: a row for every model, selection, ending and place of t."""
    setting = result["setting"]
    shown = Table(
        title=f"What changes up to token t of a chunk of {setting['chunk_size']} when the text after it does",
        caption=f"{setting['top_k']} blocks of {setting['block_size']} tokens; outputs: relative norm; "
        "loss: mean absolute change",
    )
    for heading in ("model", "selection", "after t"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("t", "choices\nchanged", "blocks\nchanged", "outputs\nmoved", "loss moved\nnats"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for measured in result["models"]:
        shown.add_section()
        for record in measured["results"]:
            shown.add_row(
                measured["model"],
                record["selection"],
                record["ending"],
                f"{record['tokens_into_chunk']}",
                f"{record['changed']:.1%}",
                f"{record['blocks_changed']:.2f}",
                f"{record['output_moved']:.1e}",
                f"{record['loss_moved']:.1e}",
            )
    return shown


@app.command()
def main(
    text: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="A text file; two or more.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A model as recipes name it, or {BYTES!r}: a new one that first reads the texts, byte by "
            f"byte; may be given several times. [default: builtin:tiny and {BYTES}]"
        ),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens per row; one row of each text.")] = 2560,
    chunk_size: Annotated[int, typer.Option(help="Tokens that attend together.")] = 512,
    block_size: Annotated[int, typer.Option(help="Tokens retrieved together.")] = 32,
    top_k: Annotated[int, typer.Option(help="Blocks retrieved per choice.")] = 8,
    steps: Annotated[int, typer.Option(min=0, help=f"For which {BYTES!r} reads, 4,096 bytes each.")] = 100,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    seed: Annotated[int, typer.Option(help="Of the rows and of the new model.")] = 0,
    output: Annotated[Path, typer.Option(help="JSON file.")] = OUTPUT,
) -> None:
    """Measures how often the choice of a chunk changes with the text after a token, and what that moves."""
    if len(text) < 2:
        raise typer.BadParameter(
            "give at least two: one goes on where another breaks off", param_hint="--text"
        )
    torch.set_num_threads(threads or cpu_count())
    try:
        spans = [
            SpanConfig(chunk_sizes=chunk_size, block_size=block_size, top_k=top_k, selection=selection)
            for selection in ("chunk", "causal")
        ]
        result = run(text, model or ["builtin:tiny", BYTES], spans, length, steps, seed)
    except (EspanError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(str(output), result)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table(result))
    NOTES.print(f"written to {output}")


if __name__ == "__main__":
    app()
