"""What a Mamba-2 recurrence costs beside transformers' own: ``python -m benchmarks.recurrence``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BambaConfig
from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan

from benchmarks.measure import interleaved_seconds, peak_bytes, saved_bytes
from benchmarks.records import describe_machine, warn_if_busy
from pipelines.system.machine import cpu_count
from pipelines.system.storage import write_json_atomic
from pipelines.system.versions import code_version
from se_model.recurrence import ssd_chunked

FORMAT = "espan-recurrence-benchmark/1"
OUTPUT = Path(__file__).parent / "results" / "recurrence-cpu.json"
HEADS, WIDTH, STATE, GROUPS = 8, 64, 128, 1
SHORT, MIDDLE, LONG = 4096, 16_384, 65_536
# transformers' torch path keeps several GiB at lengths that take it minutes.
PEER_LENGTHS = (SHORT,)
OURS, PEER = "ssd_chunked", "transformers' torch path (Bamba)"
HEADINGS = (
    "tokens", "recurrence", "forward + backward", "kept for backward", "of the inputs", "most held at once"
)  # fmt: skip
TARGET_HEADINGS = ("target", "wanted", "measured", "met")
NOTES = Console(stderr=True)

app = typer.Typer(add_completion=False)

Record = dict[str, Any]
Scan = Callable[..., Tensor]


def draw_inputs(length: int) -> list[Tensor]:
    """x [1, L, H, P], dt [1, L, H], A [H], B and C [1, L, G, N], in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, WIDTH), (HEADS,), (GROUPS, STATE), (GROUPS, STATE))
    x, dt, B, C = (torch.randn(1, length, *shape, generator=generator) for shape in shapes)
    A = -torch.linspace(1, 16, HEADS)
    return [tensor.requires_grad_() for tensor in (x, F.softplus(dt), A, B, C)]


def transformers_scan(*inputs: Tensor) -> Tensor:
    """The scan that Bamba's layers fall back on without kernels, in the chunks of its configuration."""
    y: Tensor = mamba2_chunk_scan(*inputs, chunk_size=BambaConfig().mamba_chunk_size)
    return y


def own_scan(*inputs: Tensor) -> Tensor:
    """`ssd_chunked` without the last state."""
    return ssd_chunked(*inputs)[0]


def train(scan: Scan, inputs: list[Tensor]) -> None:
    """A forward call and every gradient."""
    y = scan(*inputs)
    torch.autograd.grad(y, inputs, torch.ones_like(y))


def measure(length: int, repeats: int, seconds: float) -> list[Record]:
    """A record for each recurrence at one length."""
    inputs = draw_inputs(length)
    scans: dict[str, Scan] = {OURS: own_scan}
    if length in PEER_LENGTHS:
        scans[PEER] = transformers_scan
    calls = {name: partial(train, scan, inputs) for name, scan in scans.items()}
    peaks = {name: peak_bytes(call, "cpu") for name, call in calls.items()}  # and a warm-up
    samples = interleaved_seconds(calls, "cpu", repeats=repeats, seconds=seconds)
    return [
        {
            "length": length,
            "recurrence": name,
            "seconds": statistics.median(samples[name]),
            "samples": samples[name],
            "kept_bytes": saved_bytes(partial(scans[name], *inputs), inputs),
            "input_bytes": sum(tensor.nbytes for tensor in inputs),
            "peak_bytes": peaks[name],
        }
        for name in calls
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
    """What the recurrence was to reach, and whether it did."""
    found = {r["length"]: r for r in result["results"] if r["recurrence"] == OURS}
    per_token = {length: record["seconds"] / length for length, record in found.items()}
    kept = found[MIDDLE]["kept_bytes"] / found[MIDDLE]["input_bytes"]
    peak = found[LONG]["peak_bytes"] / (LONG * HEADS)
    growth = per_token[LONG] / per_token[SHORT]
    return [
        (f"kept for backward at {MIDDLE:,}", "20% of the inputs", f"{kept:.0%}", _met(kept <= 0.2)),
        (f"most held at once at {LONG:,}", "1.5 KB", f"{peak:,.0f} B", _met(peak <= 1500)),
        (f"time per token at {LONG:,} / at {SHORT:,}", "1.1", f"{growth:.2f}", _met(growth <= 1.1)),
    ]


def _met(met: bool) -> str:
    return "yes" if met else "no"


@app.command()
def main(
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed calls at least, of which the median counts.")
    ] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Quick calls are repeated for about so long.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = OUTPUT,
) -> None:
    """Measures the chunked recurrence of Mamba-2 on this machine's CPU, forward and backward."""
    torch.set_num_threads(threads or cpu_count())
    host = describe_machine("cpu")
    warn_if_busy(host, NOTES.print)
    results = []
    for length in (SHORT, MIDDLE, LONG):
        NOTES.print(f"measuring {length:,} tokens ...")
        results += measure(length, repeats, seconds)
    result = {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {"torch": torch.__version__, "code": code_version()},
        "sizes": {"heads": HEADS, "head_dim": WIDTH, "state_size": STATE, "groups": GROUPS},
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
