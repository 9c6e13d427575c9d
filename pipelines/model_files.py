"""Where a model's files are: in a folder, in an object store, in the package or on the model hub."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from pipelines import assets, storage
from pipelines.errors import EspanError
from pipelines.tokenizers import hub_answers

_LINES_SHOWN = 4
_HUB_TIMEOUT_SECONDS = 10.0
_WEIGHTS_AND_CONFIGURATION = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


def is_place(reference: str) -> bool:
    """Says whether `reference` means a folder, not a name on the model hub (`name` or `owner/name`)."""
    looks_like_one = reference.startswith((".", "/", "~")) or reference.count("/") > 1
    return storage.is_remote(reference) or looks_like_one or storage.is_folder(reference)


def local_folder(reference: str) -> Path:
    """Returns a local folder that holds what `reference` stands for, downloading it where it must.

    Raises:
        EspanError: it is not to be had.
    """
    if assets.is_builtin(reference):
        return assets.builtin(reference)
    if storage.is_remote(reference):
        return _download_remote(reference)
    if is_place(reference):
        return storage.local_path(reference)
    from huggingface_hub import snapshot_download

    try:
        offline = not hub_answers()
        return Path(
            snapshot_download(
                reference, allow_patterns=list(_WEIGHTS_AND_CONFIGURATION), local_files_only=offline
            )
        )
    except (OSError, ValueError) as error:
        raise EspanError(
            f"model '{reference}' is no earlier stage and no folder, and the model hub does not give it: "
            f"{brief(error)}"
        ) from error


def hub_problem(name: str) -> str | None:
    """Returns why the model hub and its local cache do not give a model, or None."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return None
        if not hub_answers():
            return "it cannot be reached from here, and the model is not in the local cache"
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        return brief(error)
    return None


def brief(error: object) -> str:
    """Returns the first lines of a message as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return "; ".join(lines[:_LINES_SHOWN]) + more


def _download_remote(place: str) -> Path:
    """Copies a remote folder to this machine's cache, once per content."""
    file_system, root = storage.filesystem(place)
    listing = file_system.find(root, detail=True)
    if not listing:
        raise EspanError(f"nothing lies below {place}")
    marks = sorted(
        (name, info["size"], str(info.get("ETag", info.get("mtime")))) for name, info in listing.items()
    )
    target = (
        Path.home() / ".cache" / "espan" / "models" / hashlib.sha256(repr(marks).encode()).hexdigest()[:32]
    )
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=target.parent)
    try:
        storage.download_folder(place, partial)
        try:
            Path(partial).rename(target)
        except OSError:
            if not target.exists():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
