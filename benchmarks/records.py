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

from benchmarks.arithmetic import training_flops
from benchmarks.libraries import REFERENCE
from benchmarks.limits import Limits, input_bytes, output_bytes
from benchmarks.measure import interleaved_seconds, peak_bytes
from benchmarks.peers import Call, LeftOut, Peer
from benchmarks.settings import Setting
from pipelines.system.versions import machine

MODES = ("forward", "forward_backward")
SELECTION = "selection"

Inputs = tuple[torch.Tensor, ...]
Record = dict[str, Any]


def forward(attends: tuple[Call, ...], inputs: Inputs) -> None:
    """Attention as evaluation runs it: nothing is kept for a backward pass."""
    with torch.no_grad():
        for attend in attends:
            attend(*inputs)


def forward_backward(attends: tuple[Call, ...], inputs: Inputs, grad: torch.Tensor) -> None:
    """Attention as training runs it, with the gradients of q, k and v."""
    for attend in attends:
        torch.autograd.grad(attend(*inputs), inputs, grad)


def draw_inputs(
    setting: Setting, length: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[Inputs, torch.Tensor]:
    """q [1, H, L, D], k and v [1, G, L, D], and the output's gradient, made on the device.

    Each is seen through a transpose of the [1, L, H, D] that a projection leaves.
    """
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v, grad = (
        torch.randn(
            (1, length, heads, setting.head_dim), generator=generator, device=device, dtype=dtype
        ).transpose(1, 2)
        for heads in (setting.heads, setting.kv_heads, setting.kv_heads, setting.heads)
    )
    return tuple(x.requires_grad_() for x in (q, k, v)), grad


def measure(
    compared: list[Peer], setting: Setting, length: int, device: str, dtype: torch.dtype, seed: int,
    *, modes: tuple[str, ...], repeats: int, seconds: float, limits: Limits
) -> tuple[list[Record], list[LeftOut]]:  # fmt: skip
    """One record per attention at one length, with ratios to the reference, and what was left out."""
    inputs, grad = draw_inputs(setting, length, device, dtype, seed)
    records: dict[str, Record] = {
        peer.name: {
            "length": length, "attention": peer.name, "flops": peer.flops, "choice_flops": peer.choice_flops
        }
        for peer in compared
    }  # fmt: skip
    left_out: list[LeftOut] = []
    for mode in (*modes, SELECTION):
        calls: dict[str, tuple[Callable[[], None], int]] = {}
        for peer in compared:
            call = _call(peer, mode, inputs, grad)
            if call is None:
                continue
            result = _try(call, peer, mode, setting, length, device, dtype, limits)
            if isinstance(result, LeftOut):
                left_out.append(result)
                if device == "cuda":
                    torch.cuda.empty_cache()
                continue
            outputs = output_bytes(setting, length, dtype, mode)
            records[peer.name][mode] = {"peak_bytes": result, "extra_bytes": result - outputs}
            calls[peer.name] = (call, len(peer.attends))
        samples = interleaved_seconds(
            {name: call for name, (call, _) in calls.items()}, device, repeats=repeats, seconds=seconds
        )
        for peer in compared:
            if peer.name in calls:
                each = [sample / calls[peer.name][1] for sample in samples[peer.name]]
                records[peer.name][mode] |= {"seconds": statistics.median(each), "samples": each}
                limits.note(peer.name, mode, _flops(peer, mode), length, statistics.median(each))
    kept = [record for record in records.values() if any(mode in record for mode in modes)]
    for record in kept:
        _compare(record, records.get(REFERENCE, {}))
    return kept, left_out


def _call(peer: Peer, mode: str, inputs: Inputs, grad: torch.Tensor) -> Callable[[], None] | None:
    """Runs everything that the peer has in a mode, once; None where it has nothing."""
    if mode == SELECTION:
        return partial(forward, peer.selects, inputs) if peer.selects else None
    if mode == "forward":
        return partial(forward, peer.attends, inputs)
    return partial(forward_backward, peer.attends, inputs, grad)


def _try(
    call: Callable[[], None], peer: Peer, mode: str, setting: Setting, length: int, device: str,
    dtype: torch.dtype, limits: Limits,
) -> int | LeftOut:  # fmt: skip
    """The call's peak memory; the run that finds it is also the warm-up of the timed ones.

    Whatever goes wrong in it is written down, so that the rest is still measured: in a result that took an
    hour, one library's failure must not cost the others.
    """
    reason = limits.too_slow(peer.name, mode, _flops(peer, mode))
    if not reason and mode != SELECTION:
        outputs = output_bytes(setting, length, dtype, mode)
        inputs = input_bytes(setting, length, dtype)
        reason = limits.too_large(inputs + outputs + peer.score_bytes)
    if reason:
        return LeftOut(peer.name, f"{mode}: {reason}")
    try:
        if device == "cuda":
            call()  # kernels are compiled and tuned in a first run, which takes memory of its own
        return peak_bytes(call, device)
    except torch.OutOfMemoryError:
        return LeftOut(peer.name, f"{mode}: out of memory")
    except Exception as error:
        return LeftOut.by(error, peer.name, mode)


def _flops(peer: Peer, mode: str) -> float:
    if mode == SELECTION:
        return peer.choice_flops
    if mode == "forward":
        return peer.flops + peer.choice_flops
    return training_flops(peer.flops, peer.choice_flops)


def _compare(record: Record, reference: Record) -> None:
    """Adds what the record is of the reference, as far as both were measured, and the choice's share."""
    ratios: dict[str, float] = {}
    if reference:
        ratios["flops"] = (record["flops"] + record["choice_flops"]) / reference["flops"]
    for mode in MODES:
        if mode not in record:
            continue
        if SELECTION in record:
            share = record[SELECTION]["seconds"] / record[mode]["seconds"]
            record[SELECTION][f"share_of_{mode}"] = share
        if mode in reference:
            for quantity in ("seconds", "peak_bytes"):
                ratios[f"{mode}_{quantity}"] = record[mode][quantity] / reference[mode][quantity]
    record["ratios"] = ratios


def floor_share(records: list[Record], record: Record, mode: str) -> float | None:
    """Time that the record's arithmetic takes at the rate of the reference, as a share of the time it took.

    The rate is the reference's at the same length, or, where it was left out there, at the longest at which
    it was measured. None if neither of them was measured in this mode.
    """
    measured = [
        other
        for other in records
        if other["attention"] == REFERENCE and mode in other and other["length"] <= record["length"]
    ]
    if not measured or mode not in record:
        return None
    reference = max(measured, key=lambda other: int(other["length"]))
    if mode == "forward":
        needed = [one["flops"] + one["choice_flops"] for one in (record, reference)]
    else:
        needed = [training_flops(one["flops"], one["choice_flops"]) for one in (record, reference)]
    rate = needed[1] / reference[mode]["seconds"]
    return float(needed[0] / rate / record[mode]["seconds"])


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


def warn_if_busy(host: Record, say: Callable[[str], None]) -> None:
    """Says not to keep the times if `describe_machine` found more than half of the cores at work."""
    if host["load_before"] > 0.5 * host["cpus"]:
        say(f"warning: the machine is busy (load {host['load_before']}); do not keep these times")
