"""What a page is made of, before it is HTML: sections of headings, charts, heat maps, tables and code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Tile:
    """One number of the summary; `change` is set apart in the colour of `tone` ("good", "bad" or "")."""

    label: str
    value: str
    note: str = ""
    change: str = ""
    tone: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """A line of a chart; `colour` is the index of a `--series-N` variable."""

    label: str
    colour: int


@dataclass(frozen=True)
class Chart:
    """A titled SVG; `note` says how to read it."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: str
    note: str = ""
    legend: Sequence[LegendEntry] = ()


@dataclass(frozen=True)
class HeatCell:
    """A fraction in 0..1 (None: not measured), as the cell shows it, and more for a pointer resting on it."""

    value: float | None
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class HeatRow:
    """One task, depth or layer, or the mean of several, which is set apart."""

    label: str
    cells: Sequence[HeatCell]
    mean: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Fractions from 0 to 1, by task, depth or layer and by `columns`, such as lengths.

    `corner` says what the rows are; `folded` leaves the map closed until someone opens it.
    """

    kind: ClassVar[str] = "heat"
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[HeatRow]
    corner: str = ""
    folded: bool = False


@dataclass(frozen=True)
class TableRow:
    """Cells as text; a total is set apart. `tone`, "good" or "bad", gives the last cell its colour."""

    cells: Sequence[str]
    total: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; `numeric` names the columns that are set to the right, `folded` as in `HeatMap`."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[TableRow]
    title: str = ""
    note: str = ""
    numeric: Sequence[int] = ()
    folded: bool = False


@dataclass(frozen=True)
class Code:
    """Text set in a fixed-width face, line by line as it is."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    note: str = ""


Card = Chart | HeatMap | Table | Code


@dataclass(frozen=True)
class Row:
    """Cards side by side, as many as there is room for; `across` is how many that is on a wide screen."""

    kind: ClassVar[str] = "row"
    cards: Sequence[Card]
    across: int = 1


@dataclass(frozen=True)
class HeatScale:
    """What the colours of the heat maps above mean: 0% to 100% of `what`."""

    kind: ClassVar[str] = "scale"
    what: str


@dataclass(frozen=True)
class Heading:
    """The name of a stage above its rows."""

    kind: ClassVar[str] = "heading"
    title: str
    note: str = ""


Block = Row | HeatScale | Heading


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its navigation."""

    id: str
    title: str
    text: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
