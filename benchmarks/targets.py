"""What the project promises of SE-Attn, as ratios within one run, and whether a run keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.libraries import REFERENCE, kernel_name
from benchmarks.peers import span_name
from benchmarks.settings import PRESETS

Result = dict[str, Any]
MET, MISSED, OPEN = "met", "missed", "not yet measured"

SPEED_UP, MEMORY, SHARE = "times as fast", "memory", "share"


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        device: where it holds.
        setting: name of the preset in which it holds; a result of other numbers says nothing about it.
        dtype: of q, k and v.
        length: tokens in the row.
        mode: "forward" or "forward_backward".
        kind: ``SPEED_UP`` (the other's seconds over ours), ``MEMORY`` (our bytes over the other's), or
            ``SHARE`` (of the choice of blocks in SE-Attn's own time).
        bound: least ratio for ``SPEED_UP``, greatest for the others.
        ours: row of the result.
        other: row of the result that ours is compared with.
        quantity: field of a row's mode that is compared.
    """

    device: str
    setting: str
    dtype: str
    length: int
    mode: str
    kind: str
    bound: float
    ours: str
    other: str
    quantity: str = "seconds"

    @property
    def text(self) -> str:
        """What is compared, for a reader."""
        way = "forward" if self.mode == "forward" else "forward + backward"
        what = {
            SPEED_UP: f"{self.other} / {self.ours}, {way}",
            MEMORY: f"peak memory beyond inputs{' and outputs' if self.quantity == 'extra_bytes' else ''}, "
            f"{self.ours} / {self.other}, {way}",
            SHARE: f"choice of blocks / {self.ours}, {way}",
        }
        return f"L = {self.length:,}: {what[self.kind]}"


@dataclass(frozen=True)
class Verdict:
    """What a result says about a target; the numbers are None where it says nothing.

    Attributes:
        other: seconds or bytes of what SE-Attn is compared with; of the whole call for a share.
        ours: seconds or bytes of SE-Attn; of the choice of blocks for a share.
    """

    target: Target
    word: str
    other: float | None = None
    ours: float | None = None
    ratio: float | None = None


def _cpu(length: int, mode: str, kind: str, bound: float, quantity: str = "seconds") -> Target:
    ours = span_name("sdpa")
    return Target("cpu", "small", "float32", length, mode, kind, bound, ours, REFERENCE, quantity)


def _gpu(kind: str, bound: float, quantity: str = "seconds") -> Target:
    ours, other = span_name("fused"), kernel_name("flash")
    return Target(
        "cuda", "paper", "bfloat16", 131_072, "forward_backward", kind, bound, ours, other, quantity
    )


TARGETS = (
    _cpu(16_384, "forward_backward", SPEED_UP, 5.0),
    _cpu(65_536, "forward", SPEED_UP, 18.0),
    _cpu(16_384, "forward_backward", MEMORY, 1.15, "extra_bytes"),
    _cpu(16_384, "forward_backward", MEMORY, 1.15, "peak_bytes"),
    _cpu(16_384, "forward_backward", SHARE, 0.10),
    _cpu(65_536, "forward_backward", SHARE, 0.10),
    _gpu(SPEED_UP, 20.0),
    _gpu(MEMORY, 1.03, "peak_bytes"),
    _gpu(SHARE, 0.10),
)


def judge(target: Target, result: Result | None) -> Verdict:
    """Whether a result keeps a target. One of another device, setting or length leaves it open."""
    if result is None or not _applies(target, result):
        return Verdict(target, OPEN)
    ours = _find(target.ours, target, result)
    other = _find(target.other, target, result)
    if target.kind == SHARE:
        return _judge_share(target, ours)
    if ours is None or other is None:
        return Verdict(target, OPEN)
    mine, theirs = (float(row[target.mode][target.quantity]) for row in (ours, other))
    ratio = theirs / mine if target.kind == SPEED_UP else mine / theirs
    kept = ratio >= target.bound if target.kind == SPEED_UP else ratio <= target.bound
    return Verdict(target, MET if kept else MISSED, theirs, mine, ratio)


def _judge_share(target: Target, ours: Result | None) -> Verdict:
    if ours is None or "selection" not in ours:
        return Verdict(target, OPEN)
    whole, choice = ours[target.mode]["seconds"], ours["selection"]["seconds"]
    ratio = ours["selection"][f"share_of_{target.mode}"]
    return Verdict(target, MET if ratio <= target.bound else MISSED, whole, choice, ratio)


def _applies(target: Target, result: Result) -> bool:
    preset = PRESETS[target.setting].setting
    given = result["setting"]
    same = all(
        given[name] == value
        for name, value in {
            "device": target.device,
            "dtype": target.dtype,
            "heads": preset.heads,
            "kv_heads": preset.kv_heads,
            "head_dim": preset.head_dim,
            "block_size": preset.block_size,
            "top_k": preset.top_k,
        }.items()
    )
    return same and tuple(given["chunk_sizes"]) == preset.chunk_sizes


def _find(name: str, target: Target, result: Result) -> Result | None:
    """The row of that name with the target's length and mode. torch's own choice is one of its kernels."""
    names = {name}
    if name == kernel_name(result["reference_kernel"]):
        names.add(REFERENCE)
    return next(
        (
            row
            for row in result["results"]
            if row["length"] == target.length and row["attention"] in names and target.mode in row
        ),
        None,
    )


def verdicts(results: list[Result]) -> list[Verdict]:
    """One for each target, by the first of the results that says something about it."""
    found = []
    for target in TARGETS:
        said = [judge(target, result) for result in results]
        found.append(next((verdict for verdict in said if verdict.word != OPEN), Verdict(target, OPEN)))
    return found


def cells(verdict: Verdict) -> tuple[str, ...]:
    """Where, what, measured of both sides, ratio, target, verdict: one row of the table."""
    target = verdict.target
    unit = _seconds if target.quantity == "seconds" else _mebibytes
    bound = f"{target.bound:.0%}" if target.kind == SHARE else f"{target.bound:g}"
    ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
    if verdict.ratio is not None and target.kind == SHARE:
        ratio = f"{verdict.ratio:.1%}"
    return (
        {"cpu": "CPU", "cuda": "GPU"}[target.device],
        target.text,
        "" if verdict.other is None else unit(verdict.other),
        "" if verdict.ours is None else unit(verdict.ours),
        ratio,
        f"at {'least' if target.kind == SPEED_UP else 'most'} {bound}",
        verdict.word,
    )


HEADINGS = ("where", "what", "compared with", "SE-Attn", "ratio", "target", "verdict")


def target_table(found: list[Verdict]) -> Table:
    """What a run ends with."""
    table = Table(title="Targets", caption="both sides measured in one run")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading not in ("what", "verdict"))
    for verdict in found:
        table.add_row(*cells(verdict))
    return table


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.1f} ms"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.1f} MiB"
