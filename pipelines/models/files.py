"""Where a model's files are: in a folder, in an object store, in the package or on the model hub."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.errors import EspanError
from pipelines.models import builtin, hub
from pipelines.models.weight_files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    ModelFiles,
    check_model_files,
    holds_adapter,
    holds_tokenizer,
    is_read,
    is_tokenizer_file,
    weights_in,
)
from pipelines.recipe.references import is_builtin, is_hub_name
from pipelines.system import node_cache, storage
from pipelines.system.plain_path import plain_path

MODELS = "models"
CONFIGURATIONS = frozenset({CONFIG_FILE, ADAPTER_CONFIG_FILE})


def is_place(reference: str) -> bool:
    """Says whether `reference` means a folder.

    Else it is a name on the model hub (`[owner/]name[@revision]`), or of what ships with the package.
    """
    if is_builtin(reference):
        return False
    if storage.is_remote(reference) or reference.startswith((".", "/", "~")):
        return True
    return storage.is_folder(reference) or not is_hub_name(reference)


def local_folder(reference: str) -> Path:
    """Returns a local folder that holds what `reference` stands for, downloading it where it must.

    What is remote is downloaded once for all processes of a machine.

    Raises:
        EspanError: it cannot be obtained, or a downloaded file is broken.
    """
    if is_builtin(reference):
        return builtin.builtin(reference)
    if is_place(reference) and not storage.is_remote(reference):
        return plain_path(storage.local_path(reference))
    if storage.is_remote(reference):
        files = ModelFiles.of(reference)
        wanted = [name for name in files.sizes if is_read(name)]
        wanted += weights_in(files.sizes, files.json_object)
        folder = node_cache.folder(MODELS, reference, wanted)
    else:
        folder = hub.fetch(reference, _hub_files(reference))
    _check_once(str(folder))
    return folder


def configuration_folder(reference: str) -> Path | None:
    """Returns a local folder with the config.json of a full model; None where it has none.

    Nothing else is downloaded for it.

    Raises:
        EspanError: the model cannot be obtained.
    """
    if is_builtin(reference):
        return builtin.builtin(reference)
    if not is_place(reference):
        return hub.fetch(reference, [CONFIG_FILE])
    if not storage.exists(storage.join(reference, CONFIG_FILE)):
        return None
    if storage.is_remote(reference):
        return node_cache.folder(MODELS, reference, [CONFIG_FILE])
    return storage.local_path(reference)


def check_files(reference: str) -> None:
    """Refuses a model or adapter of which a file is missing or broken; downloads no weights.

    Raises:
        EspanError: names the file.
    """
    if is_builtin(reference):
        return
    if is_place(reference):
        check_model_files(reference)
        return
    wanted = _hub_files(reference)
    if hub.missing(reference, wanted):
        hub.require_answer(reference, wanted)
        return
    check_model_files(str(hub.fetch(reference, wanted)))


def read_json(reference: str, name: str) -> Any:
    """Returns the content of a small JSON file of a model: in a folder, an object store or on the hub.

    Raises:
        EspanError: it cannot be obtained, or is not a JSON object; the message names the file.
    """
    folder = reference if is_place(reference) else str(hub.fetch(reference, [name]))
    return ModelFiles.of(folder).json_object(name)


def holds_adapter_only(reference: str) -> bool:
    """Says whether a hub name is an adapter.

    Raises:
        EspanError: the name cannot be obtained.
    """
    names = hub.cached_files(reference)
    if CONFIGURATIONS.isdisjoint(names):
        names = hub.files(reference)
    return holds_adapter(names)


def hub_tokenizer_files(reference: str) -> list[str]:
    """Returns the tokenizer files that come with a hub name; empty if there are none.

    Raises:
        EspanError: the name cannot be obtained.
    """
    names = hub.cached_files(reference)
    if "tokenizer.json" not in names:
        names |= hub.files(reference)
    return sorted(filter(is_tokenizer_file, names)) if holds_tokenizer(names) else []


def _hub_files(reference: str) -> list[str]:
    """Returns the files of a hub name that are read; asks the hub only if the cache is incomplete."""
    names = hub.cached_files(reference)
    weights = weights_in(names, lambda name: read_json(reference, name))
    if not weights or CONFIGURATIONS.isdisjoint(names):
        names |= hub.files(reference)
        weights = weights_in(names, lambda name: read_json(reference, name))
    if not weights:
        state = f"only {', '.join(sorted(names))}" if names else "nothing"
        raise EspanError(
            f"{reference} has no weights: {hub.where(reference)} holds {state}; finish the download where "
            "the model hub can be reached"
        )
    return [*filter(is_read, names), *weights]


@lru_cache(maxsize=64)
def _check_once(folder: str) -> None:
    check_model_files(folder)
