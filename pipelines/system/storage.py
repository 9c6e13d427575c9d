"""Files in local folders and in object stores, behind one set of functions.

A place is a path (`/data/run`, `run`) or an fsspec URL (`s3://bucket/run`). Everything that is written whole
is written atomically: a reader sees the old content, the new content or nothing, never a part.

File names that are not UTF-8 are strings with lone surrogates, as everywhere in Python. Texts and JSON hold
such a surrogate as the escape `\\udcxx`, which reads back from JSON as what it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipelines.system.filesystems import filesystem
from pipelines.system.listing import glob as glob
from pipelines.system.locations import absolute as absolute
from pipelines.system.locations import is_remote as is_remote
from pipelines.system.locations import local_path as local_path

_READ_BYTES = 1 << 22


def join(place: str, *parts: str) -> str:
    """Joins names below a place with forward slashes."""
    return "/".join([place.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(place: str) -> bool:
    """Says whether a file or folder is there."""
    if not is_remote(place):
        return local_path(place).exists()
    file_system, path = filesystem(place)
    return bool(file_system.exists(path))


def is_folder(place: str) -> bool:
    """Says whether `place` is a folder (in an object store: whether anything lies below it)."""
    if not is_remote(place):
        return local_path(place).is_dir()
    file_system, path = filesystem(place)
    return bool(file_system.isdir(path))


def make_folder(place: str) -> None:
    """Makes a folder and its parents; an object store needs none."""
    if not is_remote(place):
        local_path(place).mkdir(parents=True, exist_ok=True)


def read_bytes(place: str) -> bytes:
    """Returns the content of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_remote(place):
        return local_path(place).read_bytes()
    file_system, path = filesystem(place)
    return bytes(file_system.cat_file(path))


def read_text(place: str) -> str:
    """Returns the content of a UTF-8 file."""
    return read_bytes(place).decode("utf-8")


def read_json(place: str) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: it is not JSON; the message names the file.
    """
    try:
        return json.loads(read_bytes(place))
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error


def write_bytes_atomic(place: str, content: bytes) -> None:
    """Writes a whole file: locally by temporary file, fsync and rename; an object store's put is atomic."""
    if is_remote(place):
        file_system, path = filesystem(place)
        file_system.pipe_file(path, content)
        return
    target = local_path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(target)  # a failed write names no file by itself
        raise
    _sync_folder(target.parent)


def create_exclusively(place: str, content: bytes) -> bool:
    """Writes a file only if there is none, in one step; returns whether it did.

    In S3 this is a conditional put (`If-None-Match: *`).
    """
    if not is_remote(place):
        try:
            with local_path(place).open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True
    file_system, path = filesystem(place)
    try:
        file_system.pipe_file(path, content, mode="create")
    except OSError as error:
        # s3fs 2026.9 reports a failed condition (HTTP 412, or 409 between two at once) as EINVAL or EBUSY.
        if error.errno in (errno.EINVAL, errno.EBUSY) or isinstance(error, FileExistsError):
            return False
        raise
    return True


def remove(place: str) -> None:
    """Removes one file; does nothing when there is none."""
    if not is_remote(place):
        local_path(place).unlink(missing_ok=True)
        return
    file_system, path = filesystem(place)
    with contextlib.suppress(FileNotFoundError):
        file_system.rm_file(path)


def remove_folder(place: str) -> None:
    """Removes a folder with all that is in it; does nothing when there is none."""
    if not is_remote(place):
        if local_path(place).exists():
            shutil.rmtree(local_path(place))
        return
    file_system, path = filesystem(place)
    names = file_system.find(path)
    # fsspec reads `*?[` in names that it is given in bulk as a pattern.
    odd = [name for name in names if any(sign in name for sign in "*?[")]
    for name in odd:
        file_system.rm_file(name)
    if plain := sorted(set(names) - set(odd)):
        file_system.rm(plain)


def write_text_atomic(place: str, text: str) -> None:
    """Writes a whole UTF-8 file atomically."""
    write_bytes_atomic(place, encode(text))


def encode(text: str) -> bytes:
    """Returns `text` as UTF-8; a lone surrogate becomes its escape, which in JSON stands for it."""
    return text.encode("utf-8", "backslashreplace")


def write_json_atomic(place: str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinity are refused because they are not JSON."""
    write_text_atomic(place, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def list_folders(place: str) -> list[str]:
    """Returns the folders right below `place`, sorted; those whose names begin with a dot are left out."""
    file_system, path = filesystem(place)
    try:
        entries = file_system.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = sorted(
        os.path.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory"
    )
    return [join(place, name) for name in names if not name.startswith(".")]


def list_names(place: str) -> list[str]:
    """Returns the names of what lies right below `place`; none where there is no such folder."""
    if not is_folder(place):
        return []
    file_system, path = filesystem(place)
    return [os.path.basename(entry.rstrip("/")) for entry in file_system.ls(path, detail=False)]


def list_sizes(place: str) -> dict[str, int]:
    """Returns the size in bytes of every file right below `place`, by its name.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    file_system, root = filesystem(place)
    entries = [entry for entry in file_system.ls(root, detail=True) if entry["type"] == "file"]
    return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in entries}


def file_size(place: str) -> int:
    """Returns the size of a file in bytes."""
    file_system, path = filesystem(place)
    return int(file_system.size(path) or 0)


def file_sizes(place: str) -> dict[str, int]:
    """Returns the size in bytes of every file below `place`, by its path from there, sorted."""
    file_system, root = filesystem(place)
    found = file_system.find(root, detail=True)
    return {os.path.relpath(name, root): int(info["size"]) for name, info in sorted(found.items())}


def content_hash(place: str) -> str:
    """Returns the SHA-256 of a local file's bytes; for a remote object, of its store's checksum.

    Raises:
        FileNotFoundError: there is no such file.
    """
    digest = hashlib.sha256()
    if is_remote(place):
        file_system, path = filesystem(place)
        information = file_system.info(path)
        mark = information.get("ETag") or file_system.checksum(path)
        digest.update(f"{information['size']}:{mark}".encode())
        return digest.hexdigest()
    with local_path(place).open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def upload_folder(folder: str | Path, place: str) -> None:
    """Copies every file below a local folder to below `place`."""
    file_system, root = filesystem(place)
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            target = join(root, file.relative_to(folder).as_posix())
            file_system.makedirs(os.path.dirname(target), exist_ok=True)
            file_system.put_file(str(file), target)


def download_file(place: str, target: Path) -> None:
    """Copies a file to a local path."""
    file_system, path = filesystem(place)
    file_system.get_file(path, str(target))


def download_folder(place: str, folder: str | Path) -> None:
    """Copies every file below `place` to below a local folder.

    Raises:
        FileNotFoundError: nothing lies below `place`.
    """
    file_system, root = filesystem(place)
    names = file_system.find(root)
    if not names:
        raise FileNotFoundError(f"nothing lies below {place}")
    for name in names:
        target = Path(folder, os.path.relpath(name, root))
        target.parent.mkdir(parents=True, exist_ok=True)
        file_system.get_file(name, str(target))


def move_folder(place: str, target: str) -> None:
    """Moves a folder; locally one rename, in an object store one copy and delete per object."""
    file_system, source = filesystem(place)
    _, destination = filesystem(target)
    if is_remote(place):
        # Not `mv`: s3fs 2026.9 also tries to copy the folders, which are no objects.
        names = file_system.find(source)
        for name in names:
            file_system.cp_file(name, destination + name.removeprefix(source))
        for name in names:
            file_system.rm_file(name)
        return
    Path(destination).parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, destination)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; without it a power cut can undo the rename after the caller went on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
