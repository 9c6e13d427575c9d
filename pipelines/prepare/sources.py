"""The files of a corpus' sources: which are read, which are passed over, how they begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipelines.errors import InvalidKeyError
from pipelines.prepare.decompress import HEAD_BYTES
from pipelines.prepare.formats import endings, kind_of
from pipelines.recipe.keys.needles import NEEDLES
from pipelines.recipe.keys.prepare import AnySource, NeedlesSource, PathSource, PrepareKeys
from pipelines.recipe.keys.ruler import RULER
from pipelines.system.lfs_pointers import LARGEST_POINTER, is_git_lfs_pointer
from pipelines.system.listing import Listing, PassedOver, list_files
from pipelines.system.streams import first_bytes

_NAMED = 5  # how many of those passed over are named
UNKNOWN_ENDING = "its ending is not known"


def label_of(source: AnySource) -> str:
    """Returns what manifests call a source: its path as the recipe has it, or `needles`, or `ruler`."""
    if isinstance(source, PathSource):
        return printable(source.written.path)
    return NEEDLES if isinstance(source, NeedlesSource) else RULER


def files_of(source: PathSource) -> list[str]:
    """Returns the files of a source, sorted.

    Raises:
        InvalidKeyError: nothing is there, or nothing with a known ending.
    """
    found = list_files(source.path)
    usable = [file for file in found.files if kind_of(file)]
    if not usable:
        raise InvalidKeyError("path", _nothing(source.path, found))
    return usable


def passed_over_by(source: PathSource) -> list[PassedOver]:
    """Returns what lies among a source's files and is not read, sorted."""
    found = list_files(source.path)
    unknown = [PassedOver(file, UNKNOWN_ENDING) for file in found.files if not kind_of(file)]
    return sorted([*unknown, *found.passed_over], key=lambda one: one.place)


def passed_over(keys: PrepareKeys) -> dict[int, list[PassedOver]]:
    """Returns what lies among each source's files and is not read, by the source's ordinal."""
    found = {ordinal: passed_over_by(source) for ordinal, source in keys.path_sources.items()}
    return {ordinal: over for ordinal, over in found.items() if over}


def _nothing(path: str, found: Listing) -> str:
    if found.files:
        return f"no file of '{path}' has a known ending ({endings()})"
    if found.passed_over:
        first = found.passed_over[0]
        return f"no file matches '{path}': {first.place} is passed over ({first.reason})"
    return f"no file matches '{path}'"


def printable(text: str) -> str:
    """Returns text that can be shown anywhere, also of a file's name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def zstd_heads(files: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields the files that are named as zstd files, and the first bytes of each."""
    return first_bytes([file for file in files if file.casefold().endswith(".zst")], HEAD_BYTES)


def git_lfs_pointers(sizes: Mapping[str, int]) -> list[str]:
    """Returns those of the files that are Git LFS pointers; only small files are looked into."""
    small = [file for file, size in sizes.items() if 0 < size <= LARGEST_POINTER]
    return [file for file, head in first_bytes(small, LARGEST_POINTER) if is_git_lfs_pointer(head)]


def passed_over_text(found: Sequence[PassedOver]) -> str:
    """Returns how many files are passed over, and the first few by name."""
    names = [f"{one.place.rsplit('/', 1)[-1]} ({one.reason})" for one in found[:_NAMED]]
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return printable(f"{len(found):,}: {', '.join(names)}{more}")
