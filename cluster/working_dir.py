"""Packs a working directory into the archive that a submitted job runs in.

What travels is what version control would keep: everything but `.git`, environments, caches, run outputs, and
what a `.gitignore` or `.rayignore` (Ray's own) on the way excludes. The archive's bytes depend on the files
alone, so a second submission of an unchanged folder uploads nothing.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import EspanError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MEBIBYTE = 2**20
UPLOAD_LIMIT = 100 * MEBIBYTE
"""Bytes of the archive: the largest request that a Ray head takes (2.60, `DASHBOARD_CLIENT_MAX_SIZE`)."""
CONTENT_LIMIT = 500 * MEBIBYTE
"""Bytes before compression; checked first, so that a forgotten data folder is refused before it is read."""
NEVER_PACKED = (
    ".git/",
    ".venv/",
    "venv/",
    "runs/",
    "__pycache__/",
    ".*_cache/",
    ".terraform/",
    "*.egg-info/",
)
IGNORE_FILES = (".gitignore", ".rayignore")
_EARLIEST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_NAMED_AS_LARGEST = 3


@dataclass(frozen=True)
class Package:
    """What lies in a packed working directory: number of files and the archive's size in bytes."""

    files: int
    archive_bytes: int


def pack_working_dir(
    folder: Path, archive: Path, *, content_limit: int = CONTENT_LIMIT, upload_limit: int = UPLOAD_LIMIT
) -> Package:
    """Writes the files of `folder` that should travel into the zip file `archive`.

    Raises:
        EspanError: nothing to pack, or more than a Ray head takes; names the largest files.
    """
    if not folder.is_dir():
        raise EspanError(f"working directory {folder} is not a folder; give --working-dir the project's root")
    sizes = {path: path.stat().st_size for path in packed_files(folder)}
    if not sizes:
        raise EspanError(f"working directory {folder} holds nothing to send (all of it is ignored?)")
    _refuse_above(content_limit, sum(sizes.values()), "before compression", folder, sizes)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for path in sizes:
            packed.writestr(_entry(folder, path), path.read_bytes())
    archive_bytes = archive.stat().st_size
    _refuse_above(upload_limit, archive_bytes, "compressed", folder, sizes)
    return Package(len(sizes), archive_bytes)


def packed_files(folder: Path) -> list[Path]:
    """The files below `folder` that should travel, sorted; links to files do, links to folders do not."""
    from pathspec import GitIgnoreSpec

    return sorted(_walk(folder, [(folder, GitIgnoreSpec.from_lines(NEVER_PACKED))]))


def _walk(folder: Path, rules: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    from pathspec import GitIgnoreSpec

    lines = [line for name in IGNORE_FILES for line in _lines(folder / name)]
    rules = [*rules, (folder, GitIgnoreSpec.from_lines(lines))] if lines else rules
    for entry in os.scandir(folder):
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if _ignored(path, is_folder, rules):
            continue
        if is_folder:
            yield from _walk(path, rules)
        elif path.is_file():
            yield path


def _ignored(path: Path, is_folder: bool, rules: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    """As git decides it: the deepest ignore file with a rule for `path` decides."""
    for root, spec in reversed(rules):
        relative = path.relative_to(root).as_posix() + ("/" if is_folder else "")
        opinion = spec.check_file(relative).include
        if opinion is not None:
            return opinion
    return False


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _entry(folder: Path, path: Path) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EARLIEST_ZIP_DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (path.stat().st_mode & 0o777) << 16
    return entry


def _refuse_above(limit: int, size: int, state: str, folder: Path, sizes: dict[Path, int]) -> None:
    if size <= limit:
        return
    largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:_NAMED_AS_LARGEST]
    named = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / MEBIBYTE:.1f} MiB)" for path in largest)
    raise EspanError(
        f"working directory {folder} is {size / MEBIBYTE:.1f} MiB {state}, and a Ray head takes "
        f"{limit / MEBIBYTE:.1f} MiB; list what the job does not need in .rayignore (largest: {named})"
    )
