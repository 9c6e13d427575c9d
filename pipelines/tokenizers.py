"""Tokenizers by reference: a hub name, a folder, a `tokenizer.json`, or one that ships with the package."""

from __future__ import annotations

import hashlib
import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import assets, storage
from pipelines.errors import EspanError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# First match wins.
_END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def load_tokenizer(reference: str) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer that `reference` stands for.

    Args:
        reference: `builtin:tiny`; a `tokenizer.json`; a folder that holds one (a path or an fsspec URL); or
            a name on the model hub. A bare `tokenizer.json` does not say which token ends a document: it is
            guessed by its name.

    Raises:
        EspanError: nothing is there, it cannot be read, or it has no fast form.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = local_tokenizer(reference)
    if place is not None and storage.is_remote(place):
        return _load_remote(place, reference)
    try:
        if place is not None and Path(place).is_file():
            return _from_file(Path(place))
        if place is not None and not Path(place, "tokenizer_config.json").exists():
            return _from_file(Path(place, "tokenizer.json"))
        if place is not None and Path(place, "tokenizer.json").exists():
            # AutoTokenizer would look into the model's config.json and warn of unknown architectures.
            return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
        local = place is not None or not hub_answers()
        tokenizer = AutoTokenizer.from_pretrained(place or reference, local_files_only=local)
    except Exception as error:  # the tokenizers library raises nothing more precise for a malformed file
        what = "cannot be read" if place else "is no file, no folder, and not to be had from the model hub"
        raise EspanError(f"tokenizer '{reference}' {what}: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        what = "has no fast form (tokenizer.json); convert it with transformers first"
        raise EspanError(f"tokenizer '{reference}' {what}")
    return tokenizer


def local_tokenizer(reference: str) -> str | None:
    """Returns the file or folder that holds the tokenizer, or None for a name on the model hub.

    Raises:
        EspanError: `reference` names a file or folder, and there is none.
    """
    if assets.is_builtin(reference):
        return str(assets.builtin(reference))
    if storage.is_remote(reference):
        return reference
    path = storage.local_path(reference)
    if path.is_file() or any(
        Path(path, name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return str(path)
    if path.is_dir():
        raise EspanError(f"tokenizer '{reference}': the folder holds no tokenizer.json")
    # A hub name is `name` or `owner/name`: anything else was meant as a path.
    if reference.startswith((".", "/", "~")) or reference.endswith(".json") or reference.count("/") > 1:
        raise EspanError(f"tokenizer '{reference}': no such file or folder")
    return None


def check_tokenizer(reference: str) -> None:
    """Looks whether `load_tokenizer` has something to load; quick where the tokenizer lies on this machine.

    Raises:
        EspanError: nothing is there, or it is no tokenizer.
    """
    from tokenizers import Tokenizer

    place = local_tokenizer(reference)
    file = place if place is None or Path(place).is_file() else str(Path(place, "tokenizer.json"))
    if file is None or not Path(file).is_file():
        load_tokenizer(reference)
        return
    try:
        Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing more precise
        raise EspanError(f"tokenizer '{reference}' cannot be read: {_first_line(error)}") from error


def hub_answers(timeout_seconds: float = 5.0) -> bool:
    """Says whether the model hub can be reached; without it transformers retries for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError:
        return True  # it refused this page, so it is there
    except OSError:
        return False


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the SHA-256 of all that decides what tokens a text becomes, and what token ends a document."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
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


def _load_remote(place: str, reference: str) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        try:
            if storage.is_folder(place):
                storage.download_folder(place, folder)
            else:
                Path(folder, "tokenizer.json").write_bytes(storage.read_bytes(place))
        except OSError as error:
            raise EspanError(f"tokenizer '{reference}' cannot be fetched: {_first_line(error)}") from error
        return load_tokenizer(folder)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
