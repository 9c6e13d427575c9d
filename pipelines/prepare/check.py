"""What can be said of a corpus before anything starts: whether it is usable, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from operator import mul

from pipelines.context import Check, CheckContext
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models.tokenizer_answers import bos_of, bos_text_of, check_remembered
from pipelines.models.tokenizers import external_files, pinned
from pipelines.prepare.decompress import zstd_window
from pipelines.prepare.generated import check_documents
from pipelines.prepare.sources import (
    files_of,
    git_lfs_pointers,
    passed_over,
    passed_over_text,
    printable,
    zstd_heads,
)
from pipelines.recipe.keys.prepare import NeedlesSource, PathSource, PrepareKeys
from pipelines.system import machine, storage
from pipelines.system.machine import bytes_text
from pipelines.system.storage import file_size

_TEXT_BYTES = 4  # of English text for each token of a vocabulary of 50,000
_WORKER_MEMORY = 300 << 20  # a process with its libraries, tokenising English text
_TOKEN_BYTES = 4
_USUAL_WINDOW = 8 << 20  # zstd's at its usual levels


def external_inputs(keys: PrepareKeys) -> tuple[str, ...]:
    """Returns the tokenizer's files, and the folders of essays."""
    essays = [source.ruler.essays for source in keys.ruler_sources.values()]
    return (*external_files(keys.tokenizer), *(folder for folder in essays if folder is not None))


def files_read(keys: PrepareKeys) -> tuple[str, ...]:
    """Returns the corpus: the files that are read, not those that are passed over."""
    return tuple(file for source in keys.path_sources.values() for file in files_of(source))


def check(keys: PrepareKeys, context: CheckContext) -> None:
    """Refuses sources and tokenizers that are not there, and a disk or memory too small for the work."""
    text_bytes = _text_bytes(keys)
    try:
        check_remembered(keys.tokenizer)
    except EspanError as error:
        raise InvalidKeyError("tokenizer", str(error)) from error
    try:
        bos_of(keys.tokenizer, keys.bos)
    except EspanError as error:
        raise InvalidKeyError("bos", str(error)) from error
    _check_ruler(keys)
    disk = 2 * _tokens(keys, text_bytes) * _TOKEN_BYTES  # parts and, at the end, shards
    if not storage.is_remote(context.output) and machine.free_disk(context.output) < disk:
        free = bytes_text(machine.free_disk(context.output))
        what = f"packing takes about {bytes_text(disk)} of disk; {free} are free"
        raise InvalidKeyError("sources", f"{what}; choose another workspace")
    for ordinal, (file, window) in _windows(keys).items():
        if window > machine.available_memory() - _WORKER_MEMORY:
            what = f"{file}: its zstd window takes {bytes_text(window)} of memory while it is read"
            what += f"; {bytes_text(machine.available_memory())} are free; compress it with --long=27"
            raise InvalidKeyError(f"sources.{ordinal}.path", what)
    memory, free_memory = _worker_memory(keys), machine.available_memory()
    if free_memory < memory:
        what = f"a worker takes about {bytes_text(memory)} of memory; {bytes_text(free_memory)} are free"
        raise InvalidKeyError("rows_per_shard", f"{what}; fewer rows take less")


def _check_ruler(keys: PrepareKeys) -> None:
    for ordinal, source in keys.ruler_sources.items():
        try:
            check_documents(source.ruler, keys.tokenizer)
        except EspanError as error:
            raise InvalidKeyError(f"sources.{ordinal}.ruler", str(error)) from error


def plan(keys: PrepareKeys, context: CheckContext) -> Mapping[str, str]:
    """Returns an estimate of the corpus in tokens and rows."""
    text_bytes = _text_bytes(keys)
    tokens = _tokens(keys, text_bytes)
    rows, kept = tokens // keys.sequence_length, tokens * _TOKEN_BYTES
    tokenizer = pinned(keys.tokenizer)
    window = max((window for _, window in _windows(keys).values()), default=0)
    compressed = f", {bytes_text(window)} of them a zstd window" if window > _USUAL_WINDOW else ""
    beginning = None if context.finished else _beginning(keys)
    return {
        **({} if tokenizer == keys.tokenizer else {"tokenizer": tokenizer}),
        "corpus": f"about {tokens:,} tokens, from files of {bytes_text(text_bytes)}",
        "shapes": f"about {rows:,} rows of {keys.sequence_length:,} tokens, {keys.shard_rows:,} a shard",
        **({"beginning": f"documents begin {beginning}"} if beginning else {}),
        "disk": f"about {bytes_text(kept)}, and as much again while it runs",
        "memory": f"about {bytes_text(_worker_memory(keys) + window)} per worker{compressed}",
        **_passed_over_plan(keys),
    }


def _passed_over_plan(keys: PrepareKeys) -> dict[str, str]:
    found = [one for over in passed_over(keys).values() for one in over]
    return {"passed over": passed_over_text(found)} if found else {}


def _windows(keys: PrepareKeys) -> dict[int, tuple[str, int]]:
    """Returns, of each source with zstd files, the one with the largest window, and that in bytes."""
    found = {}
    for ordinal, source in keys.path_sources.items():
        windows = [(file, zstd_window(head)) for file, head in zstd_heads(files_of(source))]
        if windows:
            found[ordinal] = max(windows, key=lambda each: each[1])
    return found


def _beginning(keys: PrepareKeys) -> str | None:
    """Says how documents begin; None where the tokenizer knows no token for it."""
    return bos_text_of(keys.tokenizer, bos_of(keys.tokenizer, keys.bos), keys.bos)


def _tokens(keys: PrepareKeys, text_bytes: int) -> int:
    """Returns an estimate of the corpus' tokens; compressed files count as if they were not."""
    generated = [source for source in keys.sources if not isinstance(source, PathSource)]
    lengths = [s.needles.tokens if isinstance(s, NeedlesSource) else s.ruler.tokens for s in generated]
    documents = [source.documents for source in generated]
    return text_bytes // _TEXT_BYTES + sum(map(mul, documents, lengths))


def _worker_memory(keys: PrepareKeys) -> int:
    """Returns the bytes a worker needs to tokenise, and to hold a shard three times while writing it."""
    return _WORKER_MEMORY + 3 * keys.shard_rows * keys.sequence_length * _TOKEN_BYTES


def _text_bytes(keys: PrepareKeys) -> int:
    """Returns the size of all source files.

    Raises:
        InvalidKeyError: a source has no file, nothing in its files, or a Git LFS pointer among them.
    """
    total = 0
    for ordinal, source in keys.path_sources.items():
        key = f"sources.{ordinal}.path"
        try:
            sizes = {file: file_size(file) for file in files_of(source)}
        except InvalidKeyError as error:
            raise InvalidKeyError(key, error.what, error.suggestion) from error
        if not any(sizes.values()):
            raise InvalidKeyError(key, f"every file of '{source.path}' is empty")
        if pointers := git_lfs_pointers(sizes):
            more = f" (and so are {len(pointers) - 1:,} more)" if pointers[1:] else ""
            what = f"{pointers[0]} is a Git LFS pointer{more}; fetch the files with `git lfs pull`"
            raise InvalidKeyError(key, printable(what))
        total += sum(sizes.values())
    return total


CHECK = Check(check=check, plan=plan, external_inputs=external_inputs, files_read=files_read)
