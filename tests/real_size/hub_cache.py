"""A model hub's local cache laid out by hand: what `huggingface_hub` leaves behind after a download.

models--OWNER--NAME/
    refs/main                    the commit that `main` stands for
    blobs/HASH                   the files' contents
    snapshots/COMMIT/FILE        links into blobs
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest


def add_snapshot(
    cache: Path, name: str, files: Mapping[str, bytes | Path], *, revision: str = "main", commit: str = ""
) -> str:
    """Lays `files` (name -> content, or a local file) out as one cached snapshot; returns its commit."""
    contents = {
        file: content.read_bytes() if isinstance(content, Path) else content
        for file, content in files.items()
    }
    commit = commit or hashlib.sha1(repr(sorted(contents.items())).encode()).hexdigest()
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for file, content in contents.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    reference = folder / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return commit


def offline_environment(cache: Path) -> dict[str, str]:
    """Returns what tells a new process that `cache` is all there is of the model hub."""
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def use_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `cache` all there is of the model hub for this process, which may have imported the library."""
    from huggingface_hub import constants

    for variable, value in offline_environment(cache).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
