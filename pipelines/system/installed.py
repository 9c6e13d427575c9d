"""Which code answers: a hash over everything installed here that may change what a model's skeleton says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_OURS = ("se_model", "pipelines")
_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "tokenizers", "safetensors", "triton")
# What these libraries read from the environment changes what they do.
_VARIABLES = (
    "TORCH",
    "PYTORCH",
    "TRANSFORMERS",
    "TRITON",
    "PEFT",
    "DS_",
    "USE_",
    "CUDA",
    "DISABLE_",
    "ACCELERATE",
)
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd")
_BEGAN = time.time_ns()


@cache
def code_identity() -> str | None:
    """Returns the hash of the code, as this process imports it; None if it cannot be determined.

    It covers the content of every file of `se_model` and `pipelines`, the version and installation of every
    package, Python, the variables that the libraries read, and whether there is an accelerator: some packages
    offer their kernels only then. None means that a library is not where its package was installed, as under
    development, so that its version says little, or that our own files changed since this process began.
    """
    if not is_as_imported():
        return None
    try:
        libraries = [_library(name) for name in _LIBRARIES]
        code = [[name, hashlib.sha256(file.read_bytes()).hexdigest()] for name, file in _files()]
    except (OSError, ValueError):  # a file that went away; a module that does not say where it is from
        return None
    if None in libraries:
        return None
    content = {
        "code": code,
        "libraries": libraries,
        "installed": _installed(),
        "python": [sys.version, platform.platform()],
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        "accelerators": [os.path.exists(name) for name in _ACCELERATORS],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def is_as_imported() -> bool:
    """Says whether our files are those that this process began with, as far as their times tell."""
    try:
        return all(file.stat().st_mtime_ns < _BEGAN for _, file in _files())
    except OSError:  # one went away
        return False


def _files() -> Iterator[tuple[str, Path]]:
    for package in _OURS:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(folder).rglob("*.py")):
                yield f"{package}/{file.relative_to(folder).as_posix()}", file


def _library(name: str) -> list[Any] | None:
    """Returns the version and place of a library, "absent", or None: not where its package put it."""
    spec = importlib.util.find_spec(name)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return [name, "absent"] if spec is None else None
    if spec is None or spec.origin is None:
        return None
    put = os.path.realpath(str(distribution.locate_file(f"{name}/__init__.py")))
    if os.path.realpath(spec.origin) != put:
        return None
    status = os.stat(put)
    return [name, metadata.version(name), put, status.st_size, status.st_mtime_ns]


def _installed() -> list[list[Any]]:
    """Returns every installed package: its name with the version, and when its files were put there."""
    found = []
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # a zip archive, or nothing
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                record = Path(folder, name, "RECORD")
                status = record.stat() if record.exists() else None
                found.append([name, *([status.st_size, status.st_mtime_ns] if status else [])])
    return sorted(found)
