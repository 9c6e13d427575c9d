"""What a file, a folder or a pattern stands for: one rule for everything that is read.

- A place that exists is taken literally, also where it holds `*`, `?` or brackets, and so is each folder of a
  pattern. Only a name that does not exist is matched, in its folder; `**` stands for any number of folders.
- Links are followed, to files and to folders. One that leads back to a folder around it, or to nothing, is
  passed over.
- Hidden files and what editors, archivers, browsers and file managers leave behind are passed over, unless
  they are named themselves.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import fsspec

from pipelines.system.filesystems import filesystem
from pipelines.system.locations import is_remote

HIDDEN = "hidden, or left behind by another program"
BROKEN = "a broken link"
LOOP = "a link back to a folder that holds it"
NO_FILE = "not a regular file"
NOT_SEARCHED = "a folder; end the pattern with /** to read what lies in it"

_LEAVINGS = (
    # editors
    "*~", "~$*", "#*#", "*.swp", "*.swo", "*.bak", "*.orig",
    # unfinished writes and downloads
    "*.tmp", "*.tmp?", "*.temp", "*.part", "*.partial", "*.crdownload", "*.download", "*.incomplete",
    "*.aria2", "_temporary",
    # archivers, file managers and file systems
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "@eadir",
    "system volume information", "__pycache__",
)  # fmt: skip
_LEFT_BEHIND = re.compile("|".join(map(fnmatch.translate, _LEAVINGS)), re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")

_Ancestors = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that is not read, and why."""

    place: str
    reason: str


@dataclass
class Listing:
    """What a place stands for.

    Attributes:
        files: sorted, each once.
        passed_over: sorted; of a folder that is passed over, only the folder.
    """

    files: list[str] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def list_files(place: str) -> Listing:
    """Returns what a file, folder or pattern stands for; empty if nothing is there.

    Raises:
        OSError: a folder cannot be looked into.
    """
    file_system, path = filesystem(place)
    found = list(_remote(file_system, path) if is_remote(place) else _local(path))
    prefix = place[: place.index("://") + 3] if is_remote(place) else ""

    def full(name: str) -> str:
        return prefix + name.lstrip("/") if prefix else name

    over = {PassedOver(full(one.place), one.reason) for one in found if isinstance(one, PassedOver)}
    files = {full(one) for one in found if isinstance(one, str)}
    return Listing(sorted(files), sorted(over, key=lambda one: one.place))


def glob(place: str) -> list[str]:
    """Returns the files that a file, folder or pattern stands for, sorted; folders are searched through."""
    return list_files(place).files


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or _LEFT_BEHIND.match(name) is not None


def _matches(name: str, pattern: str) -> bool:
    """Says whether one part of a pattern means `name`; it means what is hidden if it begins with a dot."""
    return fnmatch.fnmatchcase(name, pattern) and not (name.startswith(".") and pattern[:1] != ".")


def _local(path: str) -> Iterator[str | PassedOver]:
    if os.path.isdir(path):
        yield from _below(path)
    elif os.path.lexists(path):
        yield _file(path)
    else:
        yield from _expand("/", [part for part in path.split("/") if part])


def _expand(folder: str, parts: Sequence[str]) -> Iterator[str | PassedOver]:
    """Yields what `parts` of a pattern stand for below a local folder."""
    part, rest = parts[0], parts[1:]
    if os.path.lexists(literal := os.path.join(folder, part)):
        yield from _last(literal) if not rest else _expand(literal, rest) if os.path.isdir(literal) else ()
    elif part == "**" and not rest:
        yield from _below(folder)
    elif part == "**":
        for each in [folder, *_folders_below(folder)]:
            yield from _expand(each, rest)
    elif _MAGIC.search(part) and os.path.isdir(folder):
        for name in os.listdir(folder):
            if not _matches(name, part):
                continue
            each = os.path.join(folder, name)
            if _is_left_behind(name) and part[:1] != ".":
                yield PassedOver(each, HIDDEN)
            elif not rest:
                yield from _last(each)
            elif os.path.isdir(each):
                yield from _expand(each, rest)


def _last(path: str) -> Iterator[str | PassedOver]:
    yield PassedOver(path, NOT_SEARCHED) if os.path.isdir(path) else _file(path)


def _file(path: str) -> str | PassedOver:
    if os.path.isfile(path):
        return path
    return PassedOver(path, NO_FILE if os.path.exists(path) else BROKEN)


def _below(folder: str) -> Iterator[str | PassedOver]:
    for found in _walk(folder):
        if not isinstance(found, PassedOver) and os.path.isdir(found):
            continue
        yield found if isinstance(found, PassedOver) else _file(found)


def _folders_below(folder: str) -> Iterator[str]:
    return (found for found in _walk(folder) if isinstance(found, str) and os.path.isdir(found))


def _walk(folder: str) -> Iterator[str | PassedOver]:
    """Yields everything below a local folder, the folders too; recursion would end at 1,000 of them."""
    waiting: list[tuple[str, _Ancestors]] = [(folder, ())]
    while waiting:
        current, around = waiting.pop()
        status = os.stat(current)
        mark = (status.st_dev, status.st_ino)
        if mark in around:
            yield PassedOver(current, LOOP)
            continue
        if current != folder:
            yield current
        for name in os.listdir(current):
            path = os.path.join(current, name)
            if _is_left_behind(name):
                yield PassedOver(path, HIDDEN)
            elif os.path.isdir(path):
                waiting.append((path, (*around, mark)))
            else:
                yield path


def _remote(file_system: fsspec.AbstractFileSystem, path: str) -> Iterator[str | PassedOver]:
    if file_system.isfile(path):
        yield path
        return
    folder, parts = path.rstrip("/"), ["**"]
    if not file_system.exists(folder):
        folder, parts = _literal_part(file_system, path)
    depth = {} if "**" in parts else {"maxdepth": len(parts)}
    for name, information in file_system.find(folder, detail=True, **depth).items():
        inner = name.removeprefix(folder).lstrip("/").split("/")
        if information["type"] != "file" or not inner[-1] or not _follows(inner, parts):
            continue
        hidden = [i for i, part in enumerate(inner) if _is_left_behind(part) and not _named(part, parts)]
        if hidden:
            yield PassedOver("/".join([folder, *inner[: hidden[0] + 1]]), HIDDEN)
        else:
            yield name


def _literal_part(file_system: fsspec.AbstractFileSystem, path: str) -> tuple[str, list[str]]:
    """Splits a pattern into the leading folder that exists or has no wildcard, and the parts to match."""
    parts = path.rstrip("/").split("/")
    first = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    while first < len(parts) - 1 and file_system.isdir("/".join(parts[: first + 1])):
        first += 1
    return "/".join(parts[:first]), parts[first:]


def _follows(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return len(parts) == 1 or any(_follows(names[i:], parts[1:]) for i in range(len(names)))
    if not names:
        return False
    same = names[0] == parts[0] or _matches(names[0], parts[0])
    return same and _follows(names[1:], parts[1:])


def _named(name: str, parts: Sequence[str]) -> bool:
    """Says whether a pattern names what is hidden: literally, or by a part that begins with a dot."""
    return any(name == part or (part[:1] == "." and _matches(name, part)) for part in parts)
