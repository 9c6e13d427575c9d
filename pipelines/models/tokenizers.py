"""Tokenizers by reference: a hub name, a folder, a `tokenizer.json`, or one that ships with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import EspanError
from pipelines.models import builtin, hub
from pipelines.models.bos import begin_with, declared_bos, without_bos
from pipelines.models.files import hub_tokenizer_files, is_place
from pipelines.models.weight_files import ModelFiles, holds_tokenizer, is_tokenizer_file
from pipelines.recipe.references import is_builtin
from pipelines.system import node_cache, storage
from pipelines.system.plain_path import plain_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHED = "tokenizers"
# First match wins.
_END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def load_tokenizer(reference: str) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer that `reference` stands for.

    Args:
        reference: `builtin:NAME`; a `tokenizer.json`; a folder that holds one (a path or an fsspec URL); or
            a name on the model hub, `owner/name` or `owner/name@revision`. A bare `tokenizer.json` does not
            say which token ends a document: it is guessed by its name. `add_bos_token: true` in a
            `tokenizer_config.json` counts, which transformers 5 ignores beside a `tokenizer.json`.

    Raises:
        EspanError: nothing is there, it cannot be read, or it has no fast form.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = local_tokenizer(reference)
    try:
        if place.is_file():
            return _from_file(place)
        if not (place / "tokenizer_config.json").exists():
            return _from_file(place / "tokenizer.json")
        if (place / "tokenizer.json").exists():
            # AutoTokenizer would look into the model's config.json and warn of unknown architectures.
            loaded = PreTrainedTokenizerFast.from_pretrained(str(place), local_files_only=True)
            return _as_configured(loaded, place / "tokenizer_config.json")
        tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more precise for a malformed file
        raise EspanError(f"tokenizer '{reference}' cannot be read: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        what = "has no fast form (tokenizer.json); convert it with transformers first"
        raise EspanError(f"tokenizer '{reference}' {what}")
    return tokenizer


def local_tokenizer(reference: str) -> Path:
    """Returns the local file or folder that holds the tokenizer, downloading its files where it must.

    Raises:
        EspanError: there is none.
    """
    if is_builtin(reference):
        return builtin.builtin(reference)
    if storage.is_remote(reference):
        return _download(reference)
    path = storage.local_path(reference)
    if path.is_file() or any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return plain_path(path)
    if path.is_dir():
        raise EspanError(f"tokenizer '{reference}': the folder holds no tokenizer.json")
    if is_place(reference):
        raise EspanError(f"tokenizer '{reference}': no such file or folder")
    try:
        files = hub_tokenizer_files(reference)
        if files:
            return hub.fetch(reference, files)
    except EspanError as error:
        raise EspanError(f"tokenizer '{reference}' is neither a file nor a folder, and {error}") from error
    raise EspanError(f"tokenizer '{reference}': the hub's model of that name has no tokenizer; name another")


def external_files(reference: str) -> tuple[str, ...]:
    """Returns the places whose content decides what `reference` is, for a stage's `external_inputs`."""
    place = str(builtin.builtin(reference)) if is_builtin(reference) else reference
    if storage.is_folder(place):  # of a model, as a rule, whose weights change no token
        return (storage.join(place, "*token*"),)
    if is_place(place) or storage.exists(place):
        return (place,)
    return (hub.MARK + reference,)


def pinned(reference: str) -> str:
    """Returns the reference with the commit that it stands for if it is a name on the model hub."""
    if is_builtin(reference) or is_place(reference) or storage.exists(reference):
        return reference
    return hub.pinned(reference)


def check_tokenizer(reference: str) -> None:
    """Checks that `load_tokenizer` has something to load; quick if the tokenizer is on this machine.

    Raises:
        EspanError: nothing is there, or it is no tokenizer.
    """
    from tokenizers import Tokenizer

    place = local_tokenizer(reference)
    file = place if place.is_file() else place / "tokenizer.json"
    if not file.is_file():
        load_tokenizer(reference)
        return
    ModelFiles.of(str(file.parent)).refuse_placeholder(file.name)
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise EspanError(f"tokenizer '{reference}' cannot be read: {_first_line(error)}") from error


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the SHA-256 of all that decides what tokens a text becomes, and what token ends a document.

    A token that begins texts does not count: whether there is one is a choice (see `pipelines.models.bos`).
    """
    definition = without_bos(tokenizer, json.loads(tokenizer.backend_tokenizer.to_str()))
    definition.pop("truncation", None)
    definition.pop("padding", None)
    content = json.dumps([definition, tokenizer.eos_token_id], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _from_file(path: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    vocabulary = tokenizer.get_vocab()
    end = next((token for token in _END_OF_DOCUMENT if token in vocabulary), None)
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def _as_configured(tokenizer: PreTrainedTokenizerFast, configuration: Path) -> PreTrainedTokenizerFast:
    adds_bos = json.loads(configuration.read_text(encoding="utf-8")).get("add_bos_token") is True
    bos = declared_bos(tokenizer)
    return begin_with(tokenizer, bos) if adds_bos and bos is not None else tokenizer


def _download(place: str) -> Path:
    """Copies a remote tokenizer's files, and nothing else, to this machine's cache."""
    try:
        if not storage.is_folder(place):
            folder, _, name = place.rpartition("/")
            return node_cache.folder(_CACHED, folder, [name]) / name
        names = [name for name in ModelFiles.of(place).sizes if is_tokenizer_file(name)]
        if not holds_tokenizer(names):
            raise EspanError("the folder holds no tokenizer.json")
        return node_cache.folder(_CACHED, place, names)
    except (EspanError, OSError) as error:
        raise EspanError(f"tokenizer '{place}' cannot be fetched: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
