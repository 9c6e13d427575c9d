"""Time and memory of span-expanded attention beside its peers: ``python -m benchmarks.attention``."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.peers import REFERENCE, Setting, peers
from benchmarks.records import Record, describe_machine, measure, table
from pipelines.lineage import code_version
from pipelines.machine import cpu_count
from pipelines.storage import write_json_atomic

FORMAT = "espan-attention-benchmark/1"
RESULTS = Path(__file__).parent / "results"
# The oracle builds its masks as Python lists: longer rows would take most of the run's time.
ORACLE, ORACLE_LENGTH = "SE-Attn naive", 2048
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


def parse_lengths(text: str) -> list[int]:
    """Reads "2048,8192" as lengths in tokens.

    Raises:
        typer.BadParameter: if one is no whole number of at least 1.
    """
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"lengths are whole numbers joined by commas, as in 2048,8192; not {text!r}")
    return sorted({int(part) for part in parts})


def run(
    setting: Setting, lengths: list[int], device: str, dtype: str, seed: int, *, repeats: int, seconds: float
) -> Record:
    """Measures at every length. Returns what the JSON file holds.

    The load is looked at before anything runs, so that it is not this run's own.
    """
    host = describe_machine(device)
    if host["load_before"] > 0.5 * host["cpus"]:
        NOTES.print(f"warning: the machine is busy (load {host['load_before']}); do not keep these times")
    records: list[Record] = []
    kind = getattr(torch, dtype)
    for length in lengths:
        NOTES.print(f"measuring {length:,} tokens ...")
        compared = list(peers(setting, length, device, kind))
        if length > ORACLE_LENGTH:
            compared = [peer for peer in compared if peer.name != ORACLE]
        records += measure(compared, setting, length, device, kind, seed, repeats=repeats, seconds=seconds)
    return {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "code": code_version()},
        "seed": seed,
        "setting": {**asdict(setting), "device": device, "dtype": dtype, "batch": 1},
        "repeats": {"least": repeats, "seconds": seconds},
        "reference": REFERENCE,
        "results": records,
        "left_out": [
            {"length": length, "attention": ORACLE, "reason": f"over {ORACLE_LENGTH} tokens"}
            for length in lengths
            if length > ORACLE_LENGTH
        ],
    }


@app.command()
def main(
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.CPU,
    lengths: Annotated[str, typer.Option(help="Tokens per row, joined by commas.")] = "2048,8192,16384",
    heads: Annotated[int, typer.Option(help="Query heads; as many key/value heads.")] = 4,
    head_dim: Annotated[int, typer.Option(help="Width of a head.")] = 64,
    chunk_size: Annotated[int, typer.Option(help="Tokens that attend together.")] = 2048,
    block_size: Annotated[int, typer.Option(help="Tokens retrieved together.")] = 32,
    top_k: Annotated[int, typer.Option(help="Blocks retrieved per chunk.")] = 8,
    window: Annotated[
        int | None, typer.Option(help="Of sliding-window attention. [default: chunk size]")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of q, k, v. [default: float32; on cuda bfloat16]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed calls at least, of which the median counts.")
    ] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Quick calls are repeated for about so long.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="JSON file. [default: benchmarks/results/attention-DEVICE-DATE.json]")
    ] = None,
) -> None:
    """Measures span-expanded attention, on every backend that serves the device, against its peers."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device; use --device cpu", param_hint="--device")
    tokens = parse_lengths(lengths)
    try:
        setting = Setting(heads, head_dim, chunk_size, block_size, top_k, window or chunk_size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    torch.set_num_threads(threads or cpu_count())
    number = dtype or (Dtype.BFLOAT16 if device == Device.CUDA else Dtype.FLOAT32)
    result = run(setting, tokens, str(device), str(number), seed, repeats=repeats, seconds=seconds)
    place = output or RESULTS / f"attention-{device}-{result['measured'][:10]}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(str(place), result)
    console = Console()
    console.width = max(console.width, 100)
    where = result["machine"]["gpu"] or result["machine"]["processor"]
    console.print(table(result["results"], f"Attention on {where}, {number}"))
    NOTES.print(f"written to {place}")


if __name__ == "__main__":
    app()
