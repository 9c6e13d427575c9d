"""A whole measurement: every attention at every length, as what the JSON file holds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata

import torch

from benchmarks.libraries import REFERENCE, library_peers, reference, reference_kernel
from benchmarks.limits import Limits, free_bytes, input_bytes, output_bytes
from benchmarks.peers import OURS, LeftOut, Peer, own_peers
from benchmarks.records import MODES, Record, describe_machine, measure, warn_if_busy
from benchmarks.settings import Setting
from pipelines.system.versions import code_version

FORMAT = "espan-attention-benchmark/2"
EVERYTHING = "everything"
"""Stands in ``left_out`` for all attentions of a length."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        lengths: measured forward, and forward and backward.
        forward_lengths: measured forward alone.
        repeats: timed calls at least.
        seconds: quick calls are repeated for about so long.
        limit: seconds that one call may take.
    """

    setting: Setting
    lengths: tuple[int, ...]
    forward_lengths: tuple[int, ...]
    device: str
    dtype: str
    seed: int
    repeats: int
    seconds: float
    limit: float

    def modes(self, length: int) -> tuple[str, ...]:
        """What is measured at a length."""
        return MODES if length in self.lengths else MODES[:1]


def run(plan: Plan, say: Callable[[str], None]) -> Iterator[Record]:
    """Measures length by length, shortest first. After each, yields all that the JSON file holds so far.

    ``say`` is told what goes on. The load is looked at first, so that it is not this run's own.
    """
    host = describe_machine(plan.device)
    warn_if_busy(host, say)
    dtype = getattr(torch, plan.dtype)
    result: Record = {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {**_versions(), "code": code_version()},
        "seed": plan.seed,
        "setting": {**asdict(plan.setting), "device": plan.device, "dtype": plan.dtype, "batch": 1},
        "repeats": {"least": plan.repeats, "seconds": plan.seconds, "limit": plan.limit},
        "reference": REFERENCE,
        "reference_kernel": reference_kernel(plan.setting, plan.device, dtype),
        "results": [],
        "left_out": [],
    }
    limits = Limits(plan.limit, 0)
    for length in sorted({*plan.lengths, *plan.forward_lengths}):
        say(f"measuring {length:,} tokens ...")
        records, left_out = _measure_length(plan, length, dtype, limits)
        result["results"] += records
        result["left_out"] += [
            {"length": length, "attention": one.name, "reason": one.reason, "failed": one.failed}
            for one in left_out
        ]
        for one in left_out:
            if one.failed:
                say(f"{one.name}: {one.reason}")
        yield result


def _measure_length(
    plan: Plan, length: int, dtype: torch.dtype, limits: Limits
) -> tuple[list[Record], list[LeftOut]]:
    limits.memory = free_bytes(plan.device)
    needed = input_bytes(plan.setting, length, dtype) + output_bytes(plan.setting, length, dtype, "forward")
    too_large = limits.too_large(needed)
    if too_large:
        return [], [LeftOut(EVERYTHING, too_large)]
    found = [
        reference(plan.setting, length),
        *own_peers(plan.setting, length, plan.device, dtype),
        *library_peers(plan.setting, length, plan.device, dtype),
    ]
    records, left_out = measure(
        [one for one in found if isinstance(one, Peer)],
        plan.setting,
        length,
        plan.device,
        dtype,
        plan.seed,
        modes=plan.modes(length),
        repeats=plan.repeats,
        seconds=plan.seconds,
        limits=limits,
    )
    return records, [one for one in found if isinstance(one, LeftOut)] + left_out


def own_failures(result: Record) -> list[str]:
    """What of the project's own, or of the reference, raised: a reason to look, not a measurement."""
    own = {REFERENCE, "sliding window", "S2", "no memory"}
    return [
        f"{one['attention']} at {one['length']:,} tokens: {one['reason']}"
        for one in result["left_out"]
        if one["failed"] and (one["attention"] in own or one["attention"].startswith(OURS))
    ]


def _versions() -> dict[str, str | None]:
    """Of what decides the numbers; null for what is not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in ("triton", "flash-attn", "flash-linear-attention")},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
