"""What a corpus is made of, as a recipe says it: files of text, and generated documents with needles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from pipelines.errors import InvalidKeyError
from pipelines.needles.compose import NeedleDocuments
from pipelines.prepare.decompress import HEAD_BYTES
from pipelines.prepare.formats import endings, kind_of
from pipelines.prepare.text import known_encoding
from pipelines.recipe.keys.section import Section
from pipelines.recipe.path_keys import Path
from pipelines.system import storage
from pipelines.system.lfs_pointers import LARGEST_POINTER, is_git_lfs_pointer
from pipelines.system.listing import Listing, PassedOver, list_files

Weight = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]


class PathSource(Section):
    """Documents in files.

    A `.txt` file is one document; a `.jsonl` or `.ndjson` file has one on each line, a `.json` file likewise,
    or in each element of an array, or is one; a `.parquet` file has one in each row; in the field `text`. All
    but the last may be compressed: `.gz`, `.zst`, `.bz2`, `.xz`. Case does not matter. Byte-order marks are
    stripped, and line ends of text files become line feeds.

    Attributes:
        path: a file, a folder (everything below it whose ending is known) or a pattern; a path or an fsspec
            URL. See `pipelines.system.listing`.
        text: the field of a JSON object or Parquet row that holds the document.
        weight: this source's share of all drawn tokens, see `PrepareStage`.
        encoding: of text and JSON: any of Python's, or `auto`: by the byte-order mark, else UTF-8 and, where
            a document is not valid UTF-8, Latin-1.
    """

    path: Path
    text: Annotated[str, Field(min_length=1)] = "text"
    weight: Weight = None
    encoding: str = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        return known_encoding(encoding)

    @property
    def label(self) -> str:
        """What manifests call this source: its path as the recipe has it."""
        return printable(self.written.path)

    def files(self) -> list[str]:
        """Returns the files of this source, sorted.

        Raises:
            InvalidKeyError: nothing is there, or nothing with a known ending.
        """
        found = list_files(self.path)
        usable = [file for file in found.files if kind_of(file)]
        if not usable:
            raise InvalidKeyError("path", self._nothing(found))
        return usable

    def passed_over(self) -> list[PassedOver]:
        """Returns what lies among this source's files and is not read, sorted."""
        found = list_files(self.path)
        unknown = [PassedOver(file, UNKNOWN_ENDING) for file in found.files if not kind_of(file)]
        return sorted([*unknown, *found.passed_over], key=lambda one: one.place)

    def _nothing(self, found: Listing) -> str:
        if found.files:
            return f"no file of '{self.path}' has a known ending ({endings()})"
        if found.passed_over:
            first = found.passed_over[0]
            return f"no file matches '{self.path}': {first.place} is passed over ({first.reason})"
        return f"no file matches '{self.path}'"


class NeedlesSource(Section):
    """Generated documents: filler text with needles and questions about them.

    The documents differ from those of every other source and stage of the recipe, whatever their settings.

    Attributes:
        needles: what a document looks like.
        documents: how many to generate.
        weight: this source's share of all drawn tokens, see `PrepareStage`.
    """

    needles: NeedleDocuments
    documents: Annotated[int, Field(ge=1)]
    weight: Weight = None

    @property
    def label(self) -> str:
        """What manifests call this source."""
        return "needles"


_NAMED = 5  # of what is passed over
UNKNOWN_ENDING = "its ending is not known"


def printable(text: str) -> str:
    """Returns text that can be shown anywhere, also of a file's name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_size(file: str) -> int:
    """Returns the size of a file in bytes."""
    file_system, path = storage.filesystem(file)
    return int(file_system.size(path) or 0)


def zstd_heads(files: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields the files that are named as zstd's, and the first bytes of each."""
    return _heads([file for file in files if file.casefold().endswith(".zst")], HEAD_BYTES)


def git_lfs_pointers(sizes: Mapping[str, int]) -> list[str]:
    """Returns those of the files that are Git LFS pointers; only small files are looked into."""
    small = [file for file, size in sizes.items() if 0 < size <= LARGEST_POINTER]
    return [file for file, head in _heads(small, LARGEST_POINTER) if is_git_lfs_pointer(head)]


def _heads(files: Sequence[str], size: int) -> Iterator[tuple[str, bytes]]:
    """Yields the files of one source and the first bytes of each, at most `size`."""
    if not files:
        return
    file_system, _ = storage.filesystem(files[0])
    paths = [storage.filesystem(file)[1] for file in files]
    ranges = [0] * len(files), [size] * len(files)
    yield from zip(files, file_system.cat_ranges(paths, *ranges, on_error="raise"), strict=True)


def passed_over_text(found: Sequence[PassedOver]) -> str:
    """Returns how many files are passed over, and the first few by name."""
    names = [f"{one.place.rsplit('/', 1)[-1]} ({one.reason})" for one in found[:_NAMED]]
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return printable(f"{len(found):,}: {', '.join(names)}{more}")


def _kind(value: Any) -> str:
    is_needles = "needles" in value if isinstance(value, dict) else isinstance(value, NeedlesSource)
    return "needles source" if is_needles else "path source"


Source = Annotated[
    Annotated[PathSource, Tag("path source")] | Annotated[NeedlesSource, Tag("needles source")],
    Discriminator(_kind),
]
