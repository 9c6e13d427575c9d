"""Bytes that a rank exchanges, and what that costs: ``python -m benchmarks.context_parallel``."""

from __future__ import annotations

import platform
import statistics
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.command import parse_tokens
from benchmarks.exchanges import OURS, Layers, count_bytes, time_overlap, time_steps
from benchmarks.records import describe_machine
from pipelines.system.storage import write_json_atomic
from pipelines.system.versions import code_version
from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    full_attention,
    ring_attention,
    state_space,
    ulysses_attention,
)
from se_model.parallel.volumes import ATTENTION, attention_exchange
from tests.distributed import run_distributed

FORMAT = "espan-context-parallel-benchmark/2"
OUTPUT = Path(__file__).parent / "results" / "context_parallel.json"
# Rows that nothing here can hold, in bfloat16.
LARGE = {
    "Mamba-2-Hybrid 2.7B": (Share(64, 1, 64 * 163_840, itemsize=2), Heads(query=30, key_value=30, size=128)),
    "Qwen3-8B": (Share(8, 1, 131_072, itemsize=2), Heads(query=32, key_value=8, size=128)),
}
# Which of them has a target: the share of ring's bytes that SE-Attn may receive.
GROUPED, GROUPED_TARGET = "Qwen3-8B", 1 / 25
NOTES = Console(stderr=True)

HEADINGS = ("ranks", "tokens", "design", "forward MiB (formula)", "backward MiB (formula)", "of ring's")
LARGE_HEADINGS = ("heads of", "ranks", "tokens", "design", "forward GiB", "backward GiB", "of ring's")

app = typer.Typer(add_completion=False)

Record = dict[str, Any]


def formulas(share: Share, heads: Heads, layers: Layers) -> dict[str, Volume]:
    """What the formulas of ``se_model.parallel.formula`` say of every design."""
    volumes = {
        **{
            name: attention_exchange(layers.config(rule), heads, share)[ATTENTION]
            for name, rule in OURS.items()
        },
        "all-gather of K/V": full_attention(share, heads),
        "ring": ring_attention(share, heads),
        "Mamba-2 state": state_space(
            share, heads=layers.state_heads, head_size=layers.state_head_size, state_size=layers.state_size
        ),
    }
    if heads.key_value % share.ranks == 0:
        volumes["Ulysses"] = ulysses_attention(share, heads)
    return volumes


def summarise(counted: list[Record], share: Share, layers: Layers) -> list[Record]:
    """One record per design, from what every rank counted: bytes received, mean and most over the ranks."""
    records = []
    for name, volume in formulas(share, layers.attention_heads, layers).items():
        record: Record = {"ranks": share.ranks, "length": share.tokens, "design": name}
        for direction, expected in (("forward", volume.forward), ("backward", volume.backward)):
            received = [_received(rank[name], direction) for rank in counted]
            record[direction] = {
                "mean": statistics.fmean(received), "most": max(received), "formula": expected
            }  # fmt: skip
        record["purposes"] = counted[0][name]
        records.append(record)
    return records


def _received(traffic: list[Record], direction: str) -> int:
    return sum(one["received"] for one in traffic if one["direction"] == direction)


def run(
    layers: Layers, ranks: tuple[int, ...], lengths: tuple[int, ...], tokens: int, repeats: int, seed: int
) -> Record:
    """Counts and measures. Returns what the JSON file holds."""
    host = describe_machine("cpu")
    records = []
    for count in ranks:
        for length in lengths:
            NOTES.print(f"counting bytes: {length:,} tokens on {count} ranks ...")
            counted = run_distributed(count_bytes, count, layers, length, seed)
            records += summarise(counted, layers.share(count, length), layers)
    NOTES.print(f"timing {tokens:,} tokens on each of one and of two ranks ...")
    timed = {
        str(count): run_distributed(time_steps, count, layers, tokens, repeats, seed)[0] for count in (1, 2)
    }
    overlap = run_distributed(time_overlap, 2, layers, tokens, repeats, seed)[0]
    return {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "code": code_version()},
        "seed": seed,
        "layers": asdict(layers),
        "results": records,
        "steps": {"tokens_per_rank": tokens, "threads_per_rank": 1, "seconds": timed},
        "overlap": {"ranks": 2, "tokens_per_rank": tokens, "seconds": overlap},
        "by_formula": {
            model: {
                "share": asdict(share),
                "heads": asdict(heads),
                "bytes": {name: asdict(volume) for name, volume in formulas(share, heads, layers).items()},
            }
            for model, (share, heads) in LARGE.items()
        },
    }


def verdicts(result: Record) -> list[str]:
    """What the result says of the targets, a sentence each."""
    totals: dict[tuple[int, int, str], float] = {
        (one["ranks"], one["length"], one["design"]): one["forward"]["mean"] + one["backward"]["mean"]
        for one in result["results"]
    }
    most = max(ranks for ranks, _, _ in totals)
    shares = {
        length: totals[most, length, "SE-Attn"] / totals[most, length, "ring"]
        for ranks, length, _ in totals
        if ranks == most
    }
    largest = max(shares.values())
    lines = [
        f"SE-Attn receives at most 1/{1 / largest:.1f} of ring's bytes on {most} ranks "
        f"(target 1/8: {'met' if largest <= 1 / 8 else 'missed'})"
    ]
    grouped = result["by_formula"][GROUPED]["bytes"]
    share = sum(grouped["SE-Attn"].values()) / sum(grouped["ring"].values())
    lines.append(
        f"with {GROUPED}'s heads it receives 1/{1 / share:.1f} of ring's bytes "
        f"(target 1/{1 / GROUPED_TARGET:.0f}: {'met' if share <= GROUPED_TARGET else 'missed'})"
    )
    off = max(
        one[direction]["mean"] / one[direction]["formula"]
        for one in result["results"]
        for direction in ("forward", "backward")
    )
    lines.append(f"the counters are at most {off:.3f} times the formulas, which give the worst case")
    steps = result["steps"]["seconds"]
    for mode, name in (("forward", "forward"), ("forward_backward", "forward + backward")):
        one, two = (statistics.median(steps[ranks][mode]) for ranks in ("1", "2"))
        lines.append(f"{name} at equal tokens per rank: two ranks take {two / one:.2f} times as long as one")
    waits = {name: statistics.median(seconds) for name, seconds in result["overlap"]["seconds"].items()}
    hidden = 1 - waits["after own chunks"] / waits["at once"]
    lines.append(
        f"chosen blocks: {1e3 * waits['at once']:.1f} ms if waited for at once, "
        f"{1e3 * waits['after own chunks']:.1f} ms after the own chunks: {hidden:.0%} hidden"
    )
    return lines


def table(result: Record) -> Table:
    """What a terminal shows: mean bytes received by a rank, counted and by formula."""
    shown = Table(title="Bytes that a rank receives in one layer, float32, MiB: counted (by formula)")
    for heading in HEADINGS:
        shown.add_column(
            heading.partition(" MiB")[0], justify="left" if heading == "design" else "right", no_wrap=True
        )
    for row in rows(result):
        shown.add_row(*row)
    return shown


def rows(result: Record) -> list[tuple[str, ...]]:
    """The cells of the table."""
    ring = {
        (one["ranks"], one["length"]): one["forward"]["mean"] + one["backward"]["mean"]
        for one in result["results"]
        if one["design"] == "ring"
    }
    return [
        (
            str(one["ranks"]), f"{one['length']:,}", one["design"],
            _cell(one["forward"]), _cell(one["backward"]), _share(one, ring[one["ranks"], one["length"]]),
        )
        for one in result["results"]
    ]  # fmt: skip


def large_rows(result: Record) -> list[tuple[str, ...]]:
    """The cells of the table of a row too long for any machine here: formulas alone."""
    cells: list[tuple[str, ...]] = []
    for model, found in result["by_formula"].items():
        share, ring = found["share"], sum(found["bytes"]["ring"].values())
        cells += [
            (
                model, str(share["ranks"]), f"{share['tokens']:,}", name, f"{one['forward'] / 2**30:.2f}",
                f"{one['backward'] / 2**30:.2f}",
                "-" if name == "Mamba-2 state" else f"{sum(one.values()) / ring:.4f}",
            )
            for name, one in found["bytes"].items()
        ]  # fmt: skip
    return cells


def _cell(bytes_: Record) -> str:
    return f"{bytes_['mean'] / 2**20:.2f} ({bytes_['formula'] / 2**20:.2f})"


def _share(record: Record, ring: float) -> str:
    if record["design"] == "Mamba-2 state":
        return "-"
    return f"{(record['forward']['mean'] + record['backward']['mean']) / ring:.3f}"


@app.command()
def main(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, joined by commas.")] = "2,4,8",
    lengths: Annotated[str, typer.Option(help="Tokens in the row.")] = "32768,65536,131072",
    chunk_size: Annotated[int, typer.Option(help="Tokens that attend together.")] = 2048,
    tokens: Annotated[int, typer.Option(help="On each rank, where time is measured.")] = 16_384,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls, of which the median counts.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    output: Annotated[Path, typer.Option(help="JSON file.")] = OUTPUT,
) -> None:
    """Counts what ranks exchange, beside other designs, and measures what it costs on this machine."""
    layers = Layers(chunk_size=chunk_size)
    result = run(layers, parse_tokens(ranks), parse_tokens(lengths), tokens, repeats, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(str(output), result)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table(result))
    for line in verdicts(result):
        console.print(line, highlight=False)
    NOTES.print(f"written to {output}")


if __name__ == "__main__":
    app()
