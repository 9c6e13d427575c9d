"""Two pictures of a result: what each attention costs by length, and how close it comes to its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.peers import OURS
from benchmarks.records import MODES, floor_share

TITLES = {"forward": "forward", "forward_backward": "forward + backward"}
Value = Callable[[dict[str, Any]], float | None]


def draw(result: dict[str, Any], place: Path) -> list[Path]:
    """Writes both pictures beside the JSON file ``place``, and returns where they lie."""
    where = result["machine"]["gpu"] or result["machine"]["processor"]
    paths = []
    for kind, figure in (("cost", cost_figure(result)), ("floor", floor_figure(result))):
        figure.suptitle(f"{where}, {result['setting']['dtype']}")
        paths.append(place.with_name(f"{place.stem}-{kind}.png"))
        figure.savefig(paths[-1], dpi=110)
    return paths


def cost_figure(result: dict[str, Any]) -> Figure:
    """Seconds of both modes, and memory, against length: the paper's figure 4, with memory beside it."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, mode in zip(axes, MODES, strict=False):
        _draw_lines(panel, result, partial(_field, mode=mode, name="seconds"))
        panel.set(title=f"time, {TITLES[mode]}", ylabel="seconds", yscale="log")
    _draw_lines(axes[2], result, partial(_field, mode=MODES[1], name="peak_bytes", factor=2**-20))
    axes[2].set(title=f"peak memory beyond inputs, {TITLES[MODES[1]]}", ylabel="MiB", yscale="log")
    _legend(figure, axes[0])
    return figure


def floor_figure(result: dict[str, Any]) -> Figure:
    """Time that the definition's arithmetic takes at the reference's rate, as a share of the time taken."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, mode in zip(axes, MODES, strict=True):
        _draw_lines(panel, result, partial(floor_share, result["results"], mode=mode))
        panel.set(title=f"share of the FLOP floor, {TITLES[mode]}")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes[0].set_ylim(bottom=0)  # shared, and only now, so that every line has had its say about the top
    _legend(figure, axes[0])
    return figure


def _draw_lines(panel: Axes, result: dict[str, Any], value: Value) -> None:
    """One line for each attention, in the order of the records; SE-Attn's are the thick ones."""
    names = list(dict.fromkeys(record["attention"] for record in result["results"]))
    for number, name in enumerate(names):
        points = [
            (record["length"], found)
            for record in result["results"]
            if record["attention"] == name and (found := value(record)) is not None
        ]
        panel.plot(
            [length for length, _ in points],
            [found for _, found in points],
            label=name,
            color=f"C{number % 10}",
            marker="osv^D"[number // 10 % 5],
            linestyle="--" if name.endswith(", causal") else "-",
            linewidth=2.5 if name.startswith(OURS) else 1.2,
        )
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1024:g}k"))
    panel.set_xlabel("tokens")
    panel.grid(alpha=0.3)


def _field(record: dict[str, Any], mode: str, name: str, factor: float = 1.0) -> float | None:
    return record[mode][name] * factor if mode in record else None


def _legend(figure: Figure, panel: Axes) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
