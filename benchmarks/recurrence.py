"""What recurrences cost beside transformers' own: ``python -m benchmarks.recurrence``."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import interleaved_seconds, peak_bytes, saved_bytes
from benchmarks.records import describe_machine, warn_if_busy
from benchmarks.recurrences import HEADS, RECURRENCES, Recurrence, Scan
from pipelines.system.machine import cpu_count
from pipelines.system.storage import write_json_atomic
from pipelines.system.versions import code_version

FORMAT = "espan-recurrence-benchmark/2"
RESULTS = Path(__file__).parent / "results"
OUTPUT, GPU_OUTPUT = RESULTS / "recurrence-cpu.json", RESULTS / "recurrence-cuda.json"
SHORT, MIDDLE, LONG = 4096, 16_384, 65_536
HEADINGS = (
    "tokens", "recurrence", "forward + backward", "kept for backward", "of the inputs", "most held at once"
)  # fmt: skip
TARGET_HEADINGS = ("recurrence", "target", "wanted", "measured", "met")
NOTES = Console(stderr=True)

app = typer.Typer(add_completion=False)

Record = dict[str, Any]


def train(scan: Scan, inputs: list[Tensor]) -> None:
    """A forward call and every gradient."""
    y = scan(*inputs)
    torch.autograd.grad(y, inputs, torch.ones_like(y))


def sides(kind: Recurrence, length: int, device: str) -> dict[str, Scan]:
    """What is measured at one length: on a CPU beside transformers, on a GPU beside a package's kernels."""
    if device == "cuda":
        return {
            f"{kind.own}, operator": kind.operator,
            f"{kind.own}, {kind.package} alone": kind.kernels,
            kind.own: kind.scan,
        }
    return {kind.own: kind.scan} | ({kind.peer: kind.peer_scan} if length == kind.peer_length else {})


def measure(kind: Recurrence, device: str, repeats: int, seconds: float) -> list[Record]:
    """A record for each side at each length, all of them timed in turn: lengths are compared, too."""
    inputs: dict[int, list[Tensor]] = {}
    scans: dict[tuple[str, int], Scan] = {}
    for length in sorted({kind.peer_length, SHORT, MIDDLE, LONG}):
        inputs[length] = [tensor.detach().to(device).requires_grad_() for tensor in kind.draw(length)]
        scans |= {(name, length): scan for name, scan in sides(kind, length, device).items()}
    calls = {
        f"{name} at {length}": partial(train, scan, inputs[length]) for (name, length), scan in scans.items()
    }
    peaks = {name: peak_bytes(call, device) for name, call in calls.items()}  # and a warm-up
    samples = interleaved_seconds(calls, device, repeats=repeats, seconds=seconds)
    return [
        {
            "length": length,
            "recurrence": name,
            "seconds": statistics.median(samples[f"{name} at {length}"]),
            "samples": samples[f"{name} at {length}"],
            "kept_bytes": saved_bytes(partial(scan, *inputs[length]), inputs[length]),
            "input_bytes": sum(tensor.nbytes for tensor in inputs[length]),
            "peak_bytes": peaks[f"{name} at {length}"],
        }
        for (name, length), scan in scans.items()
    ]


def rows(result: Record) -> list[tuple[str, ...]]:
    """One line for each record, per token and head."""
    lines: list[tuple[str, ...]] = []
    for record in result["results"]:
        each = record["length"] * HEADS
        lines.append(
            (
                f"{record['length']:,}",
                record["recurrence"],
                f"{record['seconds'] / each * 1e6:.2f} µs",
                f"{record['kept_bytes'] / each:,.0f} B",
                f"{record['kept_bytes'] / record['input_bytes']:.0%}",
                f"{record['peak_bytes'] / each:,.0f} B",
            )
        )
    return lines


def verdicts(result: Record) -> list[tuple[str, ...]]:
    """What each recurrence was to reach, and whether it did; a result may have some of them only."""
    found = {(record["recurrence"], record["length"]): record for record in result["results"]}
    if result.get("device") == "cuda":
        return [_on_top(kind, found) for kind in RECURRENCES]
    return [line for kind in RECURRENCES if (kind.own, LONG) in found for line in _verdicts(kind, found)]


def _on_top(kind: Recurrence, found: dict[tuple[str, int], Record]) -> tuple[str, ...]:
    ours, alone = (
        found[f"{kind.own}, {side}", LONG]["seconds"] for side in ("operator", f"{kind.package} alone")
    )
    ratio = ours / alone
    target = f"time of the operator at {LONG:,} / {kind.package} alone"
    return (kind.own, target, "1.05", f"{ratio:.2f}", "yes" if ratio <= 1.05 else "no")


def _verdicts(kind: Recurrence, found: dict[tuple[str, int], Record]) -> list[tuple[str, ...]]:
    short, middle, long, beside = (
        found[kind.own, length] for length in (SHORT, MIDDLE, LONG, kind.peer_length)
    )
    kept = middle["kept_bytes"] / middle["input_bytes"]
    peak = long["peak_bytes"] / (LONG * HEADS)
    growth = long["seconds"] / LONG / (short["seconds"] / SHORT)
    ratio = beside["seconds"] / found[kind.peer, kind.peer_length]["seconds"]
    lines = [
        (f"kept for backward at {MIDDLE:,}", "20% of the inputs", f"{kept:.0%}", kept <= 0.2),
        (f"most held at once at {LONG:,}", f"{kind.most_held:,} B", f"{peak:,.0f} B", peak <= kind.most_held),
        (f"time per token at {LONG:,} / at {SHORT:,}", "1.1", f"{growth:.2f}", growth <= 1.1),
        (f"time at {kind.peer_length:,} / transformers'", "1", f"{ratio:.2f}", ratio <= 1),
    ]
    return [(kind.own, *line, "yes" if met else "no") for *line, met in lines]


@app.command()
def main(
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed calls at least, of which the median counts.")
    ] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Quick calls are repeated for about so long.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: the operators beside a package's kernels.")
    ] = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write. [default: in benchmarks/results]")
    ] = None,
) -> None:
    """Measures every recurrence on this machine's CPU or GPU, forward and backward."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"--device is cpu or cuda, and torch must find it; not {device}")
    output = output or (GPU_OUTPUT if device == "cuda" else OUTPUT)
    torch.set_num_threads(threads or cpu_count())
    host = describe_machine(device)
    warn_if_busy(host, NOTES.print)
    results = []
    for kind in RECURRENCES:
        NOTES.print(f"measuring {kind.own} ...")
        results += measure(kind, device, repeats, seconds)
    result = {
        "format": FORMAT,
        "device": device,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {"torch": torch.__version__, "code": code_version()},
        "sizes": {kind.own: kind.sizes for kind in RECURRENCES},
        "results": results,
    }
    write_json_atomic(str(output), result)
    for headings, lines in ((HEADINGS, rows(result)), (TARGET_HEADINGS, verdicts(result))):
        table = Table(*headings)
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    NOTES.print(f"written to {output}")


if __name__ == "__main__":
    app()
