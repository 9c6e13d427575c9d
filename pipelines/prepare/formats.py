"""Which files are read as what: by the end of a name, whatever its case."""

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
    """Returns what a file is read as; None where its ending says nothing."""
    name = file.casefold()
    stem = next((name.removesuffix(each) for each in COMPRESSIONS if name.endswith(each)), name)
    kind = next((kind for ending, kind in KINDS.items() if stem.endswith(ending)), None)
    return None if kind == "parquet" and stem != name else kind


def endings() -> str:
    """Returns the known endings, for a message."""
    return f"{', '.join(KINDS)}; but for .parquet also with {', '.join(COMPRESSIONS)}"
