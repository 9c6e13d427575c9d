"""One record per attention and length: what it took, and what share of the reference that is."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.measure import interleaved_seconds, peak_bytes
from benchmarks.peers import REFERENCE, Peer, Setting
from pipelines.lineage import machine
from se_model.span import Attention

MODES = ("forward", "forward_backward")

Calls = dict[str, Callable[[], object]]
Record = dict[str, Any]


def forward(attend: Attention, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Attention as evaluation runs it: nothing is kept for a backward pass."""
    with torch.no_grad():
        return attend(*inputs)


def forward_backward(
    attend: Attention, inputs: tuple[torch.Tensor, ...], grad: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Attention as training runs it. Returns the gradients of q, k and v."""
    return torch.autograd.grad(attend(*inputs), inputs, grad)


def measure(
    compared: list[Peer], setting: Setting, length: int, device: str, dtype: torch.dtype, seed: int,
    *, repeats: int, seconds: float
) -> list[Record]:  # fmt: skip
    """One record per attention at one length, with ratios to the first of them.

    q, k and v: [1, H, L, D], seen through a transpose of the [1, L, H, D] that a projection leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1, length, setting.heads, setting.head_dim)
    *inputs, grad = (
        torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(4)
    )
    rows = tuple(x.requires_grad_() for x in inputs)
    calls: dict[str, Calls] = {
        "forward": {peer.name: partial(forward, peer.attend, rows) for peer in compared},
        "forward_backward": {
            peer.name: partial(forward_backward, peer.attend, rows, grad) for peer in compared
        },
    }
    records: list[Record] = [
        {"length": length, "attention": peer.name, "flops": peer.flops} for peer in compared
    ]
    for mode, by_name in calls.items():
        # The run that follows the allocations is the warm-up of the timed ones.
        peaks = {name: peak_bytes(call, device) for name, call in by_name.items()}
        samples = interleaved_seconds(by_name, device, repeats=repeats, seconds=seconds)
        for record in records:
            name = record["attention"]
            record[mode] = {
                "seconds": statistics.median(samples[name]),
                "samples": samples[name],
                "peak_bytes": peaks[name],
            }
    for record in records:
        record["ratios"] = ratios(record, records[0])
    return records


def ratios(record: Record, reference: Record) -> dict[str, float]:
    """What a record is of the reference: 0.2 is a fifth of its time, memory or arithmetic."""
    shares = {"flops": record["flops"] / reference["flops"]}
    for mode in MODES:
        for quantity in ("seconds", "peak_bytes"):
            shares[f"{mode}_{quantity}"] = record[mode][quantity] / reference[mode][quantity]
    return shares


def table(records: list[Record], title: str) -> Table:
    """What a terminal shows: every ratio stands right of what it is the ratio of."""
    shown = Table(title=title, caption=f"ratio: of {REFERENCE}'s at the same length; smaller is better")
    for heading in ("length", "attention"):
        shown.add_column(heading, justify="right" if heading == "length" else "left", no_wrap=True)
    for heading in (
        "forward\nms",
        "\nratio",
        "fwd + bwd\nms",
        "\nratio",
        "peak\nMiB",
        "\nratio",
        "FLOP\nratio",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for previous, record in zip([records[0], *records], records, strict=False):
        if previous["length"] != record["length"]:
            shown.add_section()
        share, training = record["ratios"], record["forward_backward"]
        shown.add_row(
            f"{record['length']:,}", record["attention"],
            f"{record['forward']['seconds'] * 1e3:,.1f}", f"{share['forward_seconds']:.2f}",
            f"{training['seconds'] * 1e3:,.1f}", f"{share['forward_backward_seconds']:.2f}",
            f"{training['peak_bytes'] / 2**20:,.1f}", f"{share['forward_backward_peak_bytes']:.2f}",
            f"{share['flops']:.2f}",
        )  # fmt: skip
    return shown


def describe_machine(device: str) -> Record:
    """What it was measured on, and how busy that was beforehand (processes over the last minute)."""
    load = os.getloadavg()[0]
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        **machine(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
    }
