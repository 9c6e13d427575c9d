"""Writes a checkpoint tensor by tensor: safetensors files of limited size, their index, and the settings."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from pipelines.errors import EspanError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_FILE = 5 * 10**9
"""transformers' own limit; a larger tensor has a file of its own."""

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Stored:
    """One tensor of a model, and what a checkpoint holds of it: mostly the same, under the same name.

    Attributes:
        name: in the model.
        parts: tensors on `meta` by their names in the files.
    """

    name: str
    parts: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Its size in the files."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def item_bytes(self) -> int:
        """The size of one of its numbers."""
        return next(iter(self.parts.values())).itemsize


@dataclass
class PlannedFile:
    """A file to be written, and the tensors that go into it, in order."""

    tensors: list[Stored] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(stored.nbytes for stored in self.tensors)

    def header(self) -> bytes:
        """Returns what a safetensors file begins with: the header's length, and the header."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for stored in self.tensors:
            for name, part in stored.parts.items():
                header[name] = {
                    "dtype": _CODES[part.dtype],
                    "shape": list(part.shape),
                    "data_offsets": [start, start + part.nbytes],
                }
                start += part.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        return struct.pack("<Q", len(text)) + text


def plan_files(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], largest_file: int = LARGEST_FILE
) -> list[PlannedFile]:
    """Returns the files that will hold `tensors`, which are on `meta`, under `model`'s names for them.

    Raises:
        NotTensorByTensor: `model`'s checkpoints hold tensors that are made of several of these.
    """
    # The widest numbers first: every tensor then begins at a multiple of its numbers' size.
    stored = sorted(_stored(model, tensors), key=lambda each: -each.item_bytes)
    files = [PlannedFile()]
    for each in stored:
        if files[-1].tensors and files[-1].nbytes + each.nbytes > largest_file:
            files.append(PlannedFile())
        files[-1].tensors.append(each)
    return files


class NotTensorByTensor(EspanError):
    """A checkpoint cannot be written (or merged) with one tensor in memory at a time."""


def write_files(model: PreTrainedModel, files: list[PlannedFile], read: Read, folder: Path) -> None:
    """Writes what was planned, with one tensor of the model in memory at a time.

    Args:
        model: whose tensors they are; only its settings are looked at.
        files: what `plan_files` returned.
        read: gives each tensor by its name in the model, in the order of the files.
        folder: where to.
    """
    names = _file_names(len(files))
    for name, planned in zip(names, files, strict=True):
        with (folder / name).open("wb") as file:
            file.write(planned.header())
            for stored in planned.tensors:
                _write(file, stored, revert(model, {stored.name: read(stored.name)}))
    if len(files) > 1:
        weight_map = {
            part: name
            for name, planned in zip(names, files, strict=True)
            for stored in planned.tensors
            for part in stored.parts
        }
        total = sum(planned.nbytes for planned in files)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_settings(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json, and generation_config.json for models that generate, as `save_pretrained` does."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def revert(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors under the names, and in the form, that checkpoints of `model` have them in."""
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return reverted


def _stored(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterable[Stored]:
    found = [Stored(name, revert(model, {name: tensor})) for name, tensor in tensors.items()]
    one_by_one = {name: part.shape for stored in found for name, part in stored.parts.items()}
    together = {name: part.shape for name, part in revert(model, tensors).items()}
    if one_by_one != together:
        raise NotTensorByTensor(
            f"checkpoints of {type(model).__name__} hold tensors that are made of several of the model's"
        )
    return found


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write(file: BinaryIO, stored: Stored, tensors: Mapping[str, Tensor]) -> None:
    for name, planned in stored.parts.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (planned.shape, planned.dtype):
            raise EspanError(f"{name} is {tensor.dtype} {list(tensor.shape)}, and another tensor was planned")
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
