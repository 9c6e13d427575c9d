"""Figures as SVG that takes its colours and its typeface from the page around it, in light and in dark.

matplotlib draws with stand-in colours, one for each CSS variable of `style.css`, which take their places.
Text stays text, so that it is sharp, can be selected, and is set in the page's typeface.
"""

from __future__ import annotations

import html
import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

SERIES_COLOURS = 8
"""How many series `style.css` has colours for, `--series-0` (the muted one of a baseline) included."""

STAND_INS = {
    "ink-2": "#010101",
    "grid": "#020202",
    "surface": "#030303",
    **{f"series-{index}": f"#0{index + 4:x}0a0a" for index in range(SERIES_COLOURS)},
}
"""The colour to draw with, by the name of the CSS variable that takes its place."""

_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_SUPERFLUOUS = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|\n *<g/>|font-family: [^;\"]*;? ?",
    re.DOTALL,
)


def themed_svg(figure: Figure, label: str) -> str:
    """Returns the `<svg>` element of a figure drawn with `STAND_INS`; a screen reader says `label`."""
    sink = io.StringIO()
    # The salt makes equal charts equal, byte for byte.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "DejaVu Sans"}):
        figure.savefig(sink, format="svg", metadata=_NO_METADATA)
    text = sink.getvalue()
    text = _SUPERFLUOUS.sub("", text[text.index("<svg") :])
    for name, colour in STAND_INS.items():
        text = text.replace(colour, f"var(--{name})")
    # Charts share one page: ids that nothing refers to go, the others hold a hash of what they stand for.
    referred = set(re.findall(r"#([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    head, body = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib gives every figure a viewBox"
    return f'<svg class="chart" {view_box[0]} role="img" aria-label="{html.escape(label)}">{body.rstrip()}'
