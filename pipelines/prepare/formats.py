"""How files are read: by the ending of their names, ignoring case."""

from __future__ import annotations

from typing import Literal

Kind = Literal["text", "lines", "json", "parquet"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""May follow every ending but that of Parquet files, which compress inside."""


def kind_of(file: str) -> Kind | None:
    """Returns how a file is read; None if its ending is unknown."""
    name = file.casefold()
    stem = next((name.removesuffix(each) for each in COMPRESSIONS if name.endswith(each)), name)
    kind = next((kind for ending, kind in KINDS.items() if stem.endswith(ending)), None)
    return None if kind == "parquet" and stem != name else kind


def endings() -> str:
    """Returns the known endings, for a message."""
    return f"{', '.join(KINDS)}; but for .parquet also with {', '.join(COMPRESSIONS)}"
