"""Cached facts about tokenizers: loading one takes transformers, and large ones take long."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.models.bos import bos_text, chosen_bos
from pipelines.models.tokenizers import check_tokenizer, load_tokenizer, local_tokenizer, tokenizer_hash
from pipelines.recipe.keys.common import BosChoice
from pipelines.system import storage
from pipelines.system.answers import remembered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})

_last: tuple[Any, PreTrainedTokenizerFast] | None = None


def bos_of(reference: str, choice: BosChoice) -> int | None:
    """Returns the token that texts begin with, as `chosen_bos` of the tokenizer.

    Raises:
        EspanError: as `chosen_bos` and `load_tokenizer`.
    """
    bos: int | None = asked(
        reference, ["bos", choice], lambda tokenizer: chosen_bos(tokenizer, choice, reference)
    )
    return bos


def bos_text_of(reference: str, bos: int | None, choice: BosChoice) -> str | None:
    """Says how texts begin and why, as `bos_text` of the tokenizer.

    Raises:
        EspanError: as `load_tokenizer`.
    """
    text: str | None = asked(
        reference, ["bos text", bos, choice], lambda tokenizer: bos_text(tokenizer, bos, choice)
    )
    return text


def token_of(reference: str, number: int | None) -> str:
    """Returns a token by its number."""
    return str(asked(reference, ["token", number], lambda tokenizer: tokenizer.convert_ids_to_tokens(number)))


def identity_of(reference: str) -> tuple[str, int, int | None]:
    """Returns the tokenizer's hash (see `tokenizer_hash`), its number of words, and what ends a document.

    Raises:
        EspanError: as `load_tokenizer`.
    """

    def identity(tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        return [tokenizer_hash(tokenizer), len(tokenizer), tokenizer.eos_token_id]

    sha256, words, end = asked(reference, ["identity"], identity)
    return sha256, words, end


def check_remembered(reference: str) -> None:
    """Does what `check_tokenizer` does, unless these very files have passed before.

    Raises:
        EspanError: as `check_tokenizer`.
    """
    place = local_tokenizer(reference)
    contents = _contents(place)
    question = None if contents is None else ["sound tokenizer", contents]

    def check() -> bool:
        check_tokenizer(reference)
        return True

    remembered(question, check, lambda: _contents(place) == contents)


def asked(reference: str, what: list[Any], ask: Callable[[PreTrainedTokenizerFast], Any]) -> Any:
    """Returns what `ask` says of the tokenizer, or said when these files were asked the same before.

    Args:
        reference: of the tokenizer.
        what: names the question, and all that the answer depends on beside the tokenizer, as JSON.
        ask: returns the answer, as JSON; exceptions are not cached.
    """
    place = local_tokenizer(reference)
    contents = _contents(place)
    question = None if contents is None else ["tokenizer", what, contents]
    return remembered(question, lambda: ask(_load(reference, contents)), lambda: _contents(place) == contents)


def _load(reference: str, contents: Any) -> PreTrainedTokenizerFast:
    """Returns the tokenizer, which several questions in a row share."""
    global _last
    if contents is None or _last is None or _last[0] != contents:
        _last = contents, load_tokenizer(reference)
    return _last[1]


def _contents(place: Path) -> list[Any] | None:
    """Returns everything that determines what `load_tokenizer` returns; None if that is unclear.

    transformers may look at any file beside tokenizer.json, so all of them count, but for weights.
    """
    try:
        if place.is_file():
            return ["file", _content(place)]
        if not (place / "tokenizer.json").is_file():
            return None
        files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix not in _WEIGHTS)
        return [[path.name, _content(path)] for path in files]
    except OSError:  # `load_tokenizer` says what cannot be read
        return None


def _content(path: Path) -> str:
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=256)
def _hash(path: Path, *_: int) -> str:
    """Returns the hash of a file that is as the numbers say; vocabularies have many megabytes."""
    return storage.content_hash(str(path))
