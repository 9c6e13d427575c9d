"""The command line of the attention benchmark: options in; a table, a JSON file and two plots out."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.plots import draw
from benchmarks.run import Plan, own_failures, run
from benchmarks.settings import PRESETS
from benchmarks.tables import left_out_lines, table
from benchmarks.targets import target_table, verdicts
from pipelines.system.machine import cpu_count
from pipelines.system.storage import write_json_atomic

RESULTS = Path(__file__).parent / "results"
NOTES = Console(stderr=True)

app = typer.Typer(add_completion=False)


class Device(StrEnum):
    """Where it runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Of q, k and v."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class PresetName(StrEnum):
    """A name of ``PRESETS``."""

    SMALL = "small"
    PAPER = "paper"


def parse_tokens(text: str) -> tuple[int, ...]:
    """Reads "2048,8192" as numbers of tokens, each once, in order.

    Raises:
        typer.BadParameter: if one is no whole number of at least 1.
    """
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"tokens are whole numbers joined by commas, as in 2048,8192; not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


@app.command()
def main(
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.CPU,
    preset: Annotated[
        PresetName, typer.Option(help="Lengths and numbers that the other options change.")
    ] = PresetName.SMALL,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens per row, joined by commas. [default: the preset's]")
    ] = None,
    forward_lengths: Annotated[
        str | None, typer.Option(help="Measured forward alone. [default: the preset's; none with --lengths]")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads. [default: as query heads]")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of a head.")] = None,
    chunk_sizes: Annotated[
        str | None, typer.Option(help="Tokens that attend together; several are run in turn.")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens retrieved together.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Blocks retrieved per chunk.")] = None,
    window: Annotated[int | None, typer.Option(help="Of sliding-window attention.")] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of q, k, v. [default: float32; on cuda bfloat16]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed calls at least, of which the median counts; 1 for long ones.")
    ] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Quick calls are repeated for about so long.")] = 1.0,
    limit: Annotated[float, typer.Option(min=0, help="Calls expected to take longer are left out.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="JSON file. [default: benchmarks/results/attention-DEVICE-DATE.json]")
    ] = None,
) -> None:
    """Measures span-expanded attention, on every backend that serves the device, against its peers."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device; use --device cpu", param_hint="--device")
    named = PRESETS[preset]
    changed: dict[str, Any] = {
        "heads": heads,
        # Numbers that follow another one follow the new one.
        "kv_heads": kv_heads if kv_heads is not None else heads and 0,
        "head_dim": head_dim,
        "chunk_sizes": chunk_sizes and parse_tokens(chunk_sizes),
        "block_size": block_size,
        "top_k": top_k,
        "window": window if window is not None else chunk_sizes and 0,
    }
    try:
        setting = replace(
            named.setting, **{name: value for name, value in changed.items() if value is not None}
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    forward = parse_tokens(forward_lengths) if forward_lengths else () if lengths else named.forward_lengths
    number = dtype or (Dtype.BFLOAT16 if device == Device.CUDA else Dtype.FLOAT32)
    torch.set_num_threads(threads or cpu_count())
    plan = Plan(
        setting,
        parse_tokens(lengths) if lengths else named.lengths,
        forward,
        str(device),
        str(number),
        seed,
        repeats,
        seconds,
        limit,
    )
    _run(plan, output)


def _run(plan: Plan, output: Path | None) -> None:
    place = output
    result: dict[str, Any] = {}
    for result in run(plan, NOTES.print):
        # After each length: what an hour has measured is not lost with the next one.
        place = place or RESULTS / f"attention-{plan.device}-{result['measured'][:10]}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(str(place), result)
    assert place is not None  # a plan has a length
    pictures = draw(result, place)
    console = Console()
    console.width = max(console.width, 140)
    console.print(table(result))
    for line in left_out_lines(result):
        console.print(f"left out: {line}", highlight=False, markup=False)
    NOTES.print(f"written to {', '.join(str(path) for path in (place, *pictures))}")
    console.print(target_table(verdicts([result])))
    failures = own_failures(result)
    for failure in failures:
        NOTES.print(f"failed: {failure}")
    raise typer.Exit(1 if failures else 0)
