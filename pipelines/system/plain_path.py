"""A second name for a folder or file, for libraries that misread its own name.

DeepSpeed looks for a checkpoint's files with `glob`, which reads brackets as a pattern; safetensors and
tokenizers open nothing whose path is not UTF-8. They are given a link with a plain name instead.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
from pathlib import Path

from pipelines.errors import EspanError

_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # used where the usual temporary folder has no plain name itself


def plain_path(path: Path, *, globbed: bool = False) -> Path:
    """Returns `path`, or a link to it where a library could not use its name.

    Args:
        path: a local file or folder, which need not exist yet.
        globbed: the library looks for files with `glob`, so the name must hold none of its signs either.

    Raises:
        EspanError: somebody else owns the folder of the links.
    """
    target = path.absolute()
    if _is_plain(str(target), globbed):
        return path
    parent = next(each for each in (tempfile.gettempdir(), *_FOLDERS) if _is_plain(each, True))
    folder = Path(parent, f"espan-links-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EspanError(f"{folder} belongs to another user, so links in it may lead anywhere; remove it")
    link = folder / hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    with contextlib.suppress(FileExistsError):  # from an earlier call, or another worker on this machine
        link.symlink_to(target)
    return link


def _is_plain(path: str, globbed: bool) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return not (globbed and glob.has_magic(path))
