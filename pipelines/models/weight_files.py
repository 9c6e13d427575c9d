"""Finds what is wrong with a model's files from their first and last bytes: cheap at any size.

Local folders and object stores are read alike; of a weight file only its header, or its table of contents.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from pipelines.errors import EspanError
from pipelines.system import storage
from pipelines.system.lfs_pointers import is_git_lfs_pointer
from pipelines.system.streams import open_binary, read_range

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_OTHER_FILES = ("generation_config.json",)
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# In the order in which transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16
_LARGEST_HEADER = 100_000_000  # the longest header that safetensors reads
_LARGEST_PARSED = 1 << 24  # bytes of a JSON file; larger ones are vocabularies
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class ModelFiles:
    """The files right in a folder (a path or an fsspec URL), links followed, with their sizes in bytes."""

    folder: str
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, folder: str) -> ModelFiles:
        """Lists what lies in `folder`.

        Raises:
            EspanError: there is no such folder.
        """
        try:
            if not storage.is_remote(folder):
                files = (path for path in storage.local_path(folder).iterdir() if path.is_file())
                return cls(folder, {path.name: path.stat().st_size for path in files})
            return cls(folder, storage.list_sizes(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EspanError(f"there is no folder {folder}") from error

    def place(self, name: str) -> str:
        """Returns the path or URL of a file."""
        return storage.join(self.folder, name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns bytes `start` ... `stop - 1` of a file, fewer where it ends before."""
        stop = min(stop, self.sizes[name])
        if stop <= start:
            return b""
        return read_range(self.place(name), start, stop)

    def open(self, name: str) -> IO[bytes]:
        """Opens a file to be read in pieces."""
        return open_binary(self.place(name), _HEAD_BYTES)

    def json_object(self, name: str) -> dict[str, Any]:
        """Returns the content of a small JSON file.

        Raises:
            EspanError: it is something else; the message names the file.
        """
        self.refuse_placeholder(name)
        try:
            content = json.loads(self.read(name, 0, self.sizes[name]))
        except (ValueError, RecursionError) as error:
            raise self.error(name, f"is not valid JSON ({error}); fetch it again") from error
        if not isinstance(content, dict):
            raise self.error(name, f"holds {type(content).__name__} instead of a JSON object; fetch it again")
        return content

    def refuse_placeholder(self, name: str) -> None:
        """Refuses a file that only stands for another: empty, a Git LFS pointer, a web page.

        Raises:
            EspanError: it is one; the message names it.
        """
        if not self.sizes[name]:
            raise self.error(name, "is empty; fetch it again")
        head = self.read(name, 0, 256)
        if is_git_lfs_pointer(head):
            raise self.error(name, "is a Git LFS pointer; fetch the file with `git lfs pull`")
        if (
            head.removeprefix(_BYTE_ORDER_MARK)
            .lstrip()
            .lower()
            .startswith((b"<!doctype", b"<html", b"<?xml"))
        ):
            raise self.error(name, "is a web page (what a failed download leaves); fetch the file again")

    def error(self, name: str, what: str) -> EspanError:
        """Returns an error about a file."""
        return EspanError(f"{self.place(name)} {what}")


def holds_adapter(names: Collection[str]) -> bool:
    """Says whether a folder with these files is an adapter; beside one, config.json is its base's."""
    return ADAPTER_CONFIG_FILE in names


def weights_in(names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Returns the files that hold the weights of a model or adapter, its index first; none: no weights.

    Args:
        names: the folder's files.
        read_json: returns the content of one of them.

    Raises:
        EspanError: an index is not valid.
    """
    if holds_adapter(names):
        return [name for name in _ADAPTER_WEIGHTS if name in names][:1]
    order: tuple[str, ...] = _WEIGHTS
    if CONFIG_FILE in names and _is_published(read_json(CONFIG_FILE)):
        order = ("pytorch_model.bin",)  # all that the family's reader reads
    for name in order:
        if name not in names:
            continue
        if not name.endswith(".index.json"):
            return [name]
        shards = read_json(name).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
            raise EspanError(f"{name} has no weight_map of tensors to files; fetch it again")
        return [name, *sorted(set(shards.values()))]
    return []


def is_read(name: str) -> bool:
    """Says whether loading a model or its tokenizer reads this file, its weights aside."""
    return is_tokenizer_file(name) or name in (CONFIG_FILE, ADAPTER_CONFIG_FILE, *_OTHER_FILES)


def is_tokenizer_file(name: str) -> bool:
    """Says whether loading a tokenizer reads this file."""
    return name in _TOKENIZER_FILES or ("/" not in name and name.endswith(".jinja"))


def holds_tokenizer(names: Collection[str]) -> bool:
    """Says whether a folder with these files has a tokenizer of its own, in fast form or to be converted."""
    return not {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}.isdisjoint(names)


def check_model_files(folder: str) -> None:
    """Refuses a model or adapter whose files cannot be what they should, without reading the weights.

    Args:
        folder: a path or an fsspec URL that holds config.json or adapter_config.json.

    Raises:
        EspanError: names the file, what is wrong with it, and what to do.
    """
    files = ModelFiles.of(folder)
    if not storage.is_remote(folder):
        _refuse_links_to_nothing(storage.local_path(folder))
    for name in sorted(files.sizes):
        if is_read(name):
            files.refuse_placeholder(name)
            if name.endswith(".json") and files.sizes[name] <= _LARGEST_PARSED:
                files.json_object(name)
    if CONFIG_FILE in files.sizes and not holds_adapter(files.sizes):
        config = files.json_object(CONFIG_FILE)
        if "model_type" not in config and not _is_published(config):
            raise files.error(CONFIG_FILE, "names no model_type, so it describes no model; fetch it again")
        if config.get("quantization_config"):
            what = "has a quantization_config, and quantized weights cannot be loaded here"
            raise files.error(CONFIG_FILE, f"{what}; use the checkpoint that they were made from")
    try:
        weights = weights_in(files.sizes, files.json_object)
    except EspanError as error:
        raise error if folder in str(error) else EspanError(f"{folder}: {error}") from error
    if not weights:
        expected = (_ADAPTER_WEIGHTS if holds_adapter(files.sizes) else _WEIGHTS)[0]
        raise EspanError(f"{folder} holds no weights ({expected} or the like); fetch them")
    for name in weights:
        _check_weights(files, name, weights[0])


def _refuse_links_to_nothing(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        matters = is_read(path.name) or path.name.endswith((".safetensors", ".bin", ".index.json"))
        if matters and path.is_symlink() and not path.exists():
            raise EspanError(f"{path} is a link to {os.readlink(path)}, which is not there; fetch it again")


def _is_published(config: Mapping[str, Any]) -> bool:
    """See `se_model.hybrid.published.is_published_config`, which needs torch."""
    return "model_type" not in config and {"d_model", "n_layer"} <= config.keys()


def _check_weights(files: ModelFiles, name: str, index: str) -> None:
    if name not in files.sizes:
        raise files.error(index, f"names {name}, which is not there; fetch that file")
    files.refuse_placeholder(name)
    if name.endswith(".safetensors"):
        _check_safetensors(files, name)
    elif name.endswith(".bin"):
        _check_torch_file(files, name)


def _check_safetensors(files: ModelFiles, name: str) -> None:
    """The format: 8 bytes, the header's length; the header, JSON; the tensors, without gaps."""
    size = files.sizes[name]
    head = files.read(name, 0, _HEAD_BYTES)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > _LARGEST_HEADER:
        raise files.error(name, "is not a safetensors file: it does not begin with a header; fetch it again")
    if 8 + length > size:
        raise files.error(
            name, f"is cut short: it has {size:,} bytes, its header alone {8 + length:,}; fetch it again"
        )
    if 8 + length > len(head):
        head += files.read(name, len(head), 8 + length)
    try:
        header = json.loads(head[8 : 8 + length])
        spans = sorted(_span(entry) for tensor, entry in header.items() if tensor != "__metadata__")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise files.error(
            name, "is not a safetensors file: its header is not one of tensors; fetch it again"
        ) from error
    expected = 8 + length + (spans[-1][1] if spans else 0)
    if size < expected:
        raise files.error(
            name,
            f"is cut short: it has {size:,} of the {expected:,} bytes its header promises; fetch it again",
        )
    gapless = all(before[1] == after[0] for before, after in zip([(0, 0), *spans], spans, strict=False))
    if size > expected or not gapless:
        raise files.error(name, "is damaged: its tensors are not where its header says; fetch it again")


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Returns where a tensor begins and ends.

    Raises:
        ValueError: the entry contradicts itself.
    """
    begin, end = entry["data_offsets"]
    size = _ITEM_BYTES.get(entry["dtype"])
    if not 0 <= begin <= end or (size is not None and end - begin != size * prod(entry["shape"])):
        raise ValueError(f"offsets {begin} to {end} of a tensor of shape {entry['shape']}")
    return begin, end


def _check_torch_file(files: ModelFiles, name: str) -> None:
    """torch.save writes a zip archive whose table of contents lies at its end; before 1.6, a pickle."""
    head = files.read(name, 0, 4)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return
    if head != b"PK\x03\x04":
        raise files.error(name, "is not a torch.save file, neither archive nor pickle; fetch it again")
    try:
        with files.open(name) as opened, zipfile.ZipFile(opened) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise files.error(name, "is cut short: its table of contents is missing; fetch it again") from error
    if not any(member.endswith("/data.pkl") or member == "data.pkl" for member in members):
        raise files.error(name, "is an archive, but not one of torch.save; fetch it again")
