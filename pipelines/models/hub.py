"""The model hub: names, the commits they stand for, and which of their files are on this machine.

A reference is `name` or `owner/name`, with `@revision` where a branch, a tag or a commit is meant. The commit
is looked up in the local cache first and on the hub only where the cache does not know it, and then written
into the cache: a run that goes on later goes on with the same model, and works without the hub.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import EspanError
from pipelines.recipe.references import split_reference

MARK = "hub:"
"""Begins an external input of a stage that is a hub reference: its commit stands for its content."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10.0
_ANSWER_LASTS_SECONDS = 60.0
_LINES_SHOWN = 4

_answers: dict[str, tuple[float, bool]] = {}
_listings: dict[str, frozenset[str]] = {}


def pinned(reference: str) -> str:
    """Returns the reference with the commit that it stands for: `owner/name@commit`.

    Raises:
        EspanError: neither the local cache nor the hub knows it.
    """
    name, revision = split_reference(reference)
    if _COMMIT.fullmatch(revision):
        return f"{name}@{revision}"
    file = _cache_of(name) / "refs" / revision
    if file.is_file() and _COMMIT.fullmatch(commit := file.read_text().strip()):
        return f"{name}@{commit}"
    commit = _ask_commit(reference)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(commit)
    return f"{name}@{commit}"


def cached_folder(reference: str) -> Path | None:
    """Returns the local snapshot of a reference, which may lack files; None where there is none."""
    name, commit = split_reference(pinned(reference))
    folder = _cache_of(name) / "snapshots" / commit
    return folder if folder.is_dir() else None


def files(reference: str) -> frozenset[str]:
    """Returns the names of all files of a reference: the hub's, or those cached where it does not answer.

    Raises:
        EspanError: neither the local cache nor the hub knows it.
    """
    name, commit = split_reference(pinned(reference))
    cached = cached_files(reference)
    if not hub_answers():
        return cached
    try:
        return _ask_files(name, commit)
    except EspanError:
        # A proxy that answers for the hub, or an expired token, does not invalidate what is already here.
        if cached:
            return cached
        raise


def cached_files(reference: str) -> frozenset[str]:
    """Returns the names of the files of a reference that are on this machine, whole."""
    folder = cached_folder(reference)
    if folder is None:
        return frozenset()
    # A link whose blob is missing is no file.
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def missing(reference: str, wanted: Iterable[str]) -> list[str]:
    """Returns those of the `wanted` files of a reference that are not on this machine."""
    return sorted(set(wanted) - cached_files(reference))


def fetch(reference: str, wanted: Iterable[str]) -> Path:
    """Returns a local folder with the `wanted` files of a reference, downloading those that are missing.

    Processes that want the same file at once download it once: the hub's library locks each.

    Raises:
        EspanError: they cannot be obtained; the message says which are missing here.
    """
    name, commit = split_reference(pinned(reference))
    absent = missing(reference, wanted)
    folder = cached_folder(reference)
    if not absent and folder is not None:
        return folder
    require_answer(reference, absent)
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=absent))
    except (HTTPError, OSError, ValueError) as error:
        raise EspanError(f"the model hub does not give {reference}: {brief(error)}") from error
    if absent := missing(reference, absent):
        raise EspanError(f"the model hub has no {_listed(absent)} in {reference}")
    return folder


def require_answer(reference: str, wanted: Iterable[str]) -> None:
    """Refuses to go on where the hub cannot be reached for the `wanted` files of a reference.

    Raises:
        EspanError: says which of them are missing, and where.
    """
    if hub_answers():
        return
    name, commit = split_reference(pinned(reference))
    raise EspanError(
        f"{name} (commit {commit[:12]}) is incomplete on this machine: {where(reference)} lacks "
        f"{_listed(missing(reference, wanted))}, and the model hub cannot be reached from here; finish the "
        "download where it can be reached"
    )


def where(reference: str) -> str:
    """Returns what to call the local snapshot of a reference in a message."""
    name, commit = split_reference(pinned(reference))
    interrupted = any((_cache_of(name) / "blobs").glob("*.incomplete"))
    folder = _cache_of(name) / "snapshots" / commit
    return f"{folder} (whose download was interrupted)" if interrupted else str(folder)


def hub_answers(timeout_seconds: float = 5.0) -> bool:
    """Says whether the model hub can be reached; without it transformers retries for most of a minute.

    The answer is kept for a minute, so that a recipe of many stages does not wait for each one.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    asked, answer = _answers.get(constants.ENDPOINT, (0.0, False))
    if asked and time.monotonic() - asked < _ANSWER_LASTS_SECONDS:
        return answer
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=timeout_seconds):
            answer = True
    except urllib.error.HTTPError:
        answer = True  # it refused this page, so it is there
    except (OSError, ValueError):
        answer = False
    _answers[constants.ENDPOINT] = time.monotonic(), answer
    return answer


def brief(error: object) -> str:
    """Returns the first lines of a message as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return "; ".join(lines[:_LINES_SHOWN]) + more


def _cache_of(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"


def _ask_commit(reference: str) -> str:
    if not hub_answers():
        raise EspanError(
            f"the model hub cannot be reached from here, and '{reference}' is not in the local cache"
        )
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    name, revision = split_reference(reference)
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS).sha
    except (HTTPError, OSError, ValueError) as error:
        raise EspanError(f"the model hub does not give '{reference}': {brief(error)}") from error
    if commit is None:
        raise EspanError(f"the model hub names no commit of '{reference}'")
    return commit


def _ask_files(name: str, commit: str) -> frozenset[str]:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    reference = f"{name}@{commit}"
    if reference not in _listings:
        try:
            _listings[reference] = frozenset(HfApi().list_repo_files(name, revision=commit))
        except (HTTPError, OSError, ValueError) as error:
            raise EspanError(f"the model hub does not list '{reference}': {brief(error)}") from error
    return _listings[reference]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LINES_SHOWN} more" if len(names) > _LINES_SHOWN else ""
    return ", ".join(names[:_LINES_SHOWN]) + more
