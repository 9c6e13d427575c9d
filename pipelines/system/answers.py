"""Caches answers that take seconds to compute and depend only on the contents of files.

Finding out what a model needs, refuses or embeds means building it without memory. That takes torch and
transformers, which take seconds to import. Each such answer is kept below the cache's folder (see
`pipelines.system.node_cache`):

    $ESPAN_CACHE, or ~/.cache/espan
        answers/SHA256.json     {"sha256": of the answer, "answer": ...}

The name is the hash of everything that the answer depends on: the question, with the contents of the files
that it is about, and the code that answers it (see `pipelines.system.installed`). So nothing is ever out of
date, and the folder may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.system.installed import code_identity, is_as_imported
from pipelines.system.node_cache import cache_root

FOLDER = "answers"
MOST_KEPT, KEPT_THEN = 1000, 900
"""Files in the folder: when there are more than the first, those used longest ago go."""


def remembered(question: Any, ask: Callable[[], Any], still: Callable[[], bool] = lambda: True) -> Any:
    """Returns `ask()`, or what it returned when the same question was asked before.

    Args:
        question: what the answer depends on besides the code, as JSON; None to ask each time.
        ask: computes the answer, as JSON; exceptions are not cached.
        still: says, after `ask`, whether the question describes what `ask` looked at.
    """
    path = None if question is None else _path(question)
    if path is None:
        return ask()
    if (kept := _read(path)) is not None:
        return kept[0]
    text = json.dumps(ask())
    if still() and is_as_imported():
        _write(path, text)
    return json.loads(text)  # so that an answer looks the same the first time


def _path(question: Any) -> Path | None:
    code = code_identity()
    if code is None:
        return None
    try:
        asked = json.dumps([question, code], sort_keys=True)
        root = cache_root()
    except (TypeError, ValueError, RuntimeError):  # a key that is no JSON; a user without a home
        return None
    return root / FOLDER / f"{_hash(asked)}.json"


def _read(path: Path) -> tuple[Any] | None:
    """Returns the answer in a one-element tuple; None if there is none, or if it is incomplete."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(kept["answer"])
        if kept["sha256"] != _hash(text):
            return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return (kept["answer"],)


def _write(path: Path, text: str) -> None:
    """Stores an answer; if the cache cannot be written, the answer is computed again next time."""
    arriving = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            arriving.write_text(f'{{"sha256": "{_hash(text)}", "answer": {text}}}\n', encoding="utf-8")
            arriving.replace(path)
        finally:
            arriving.unlink(missing_ok=True)
        _forget_the_oldest(path.parent)


def _forget_the_oldest(folder: Path) -> None:
    files = list(folder.iterdir())
    if len(files) <= MOST_KEPT:
        return
    used = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # another process is pruning as well
            used[file] = file.stat().st_mtime
    for file in sorted(used, key=lambda each: used[each])[:-KEPT_THEN]:
        file.unlink(missing_ok=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
