"""The files of a checkpoint, read tensor by tensor: safetensors or torch's own format, one file or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.errors import EspanError
from pipelines.models.weight_files import weights_in
from pipelines.system.storage import read_json
from se_model.hybrid.published import read_published_weights

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAPPED_BYTES = 64 << 20
"""A torch file is mapped anew after so many bytes were read through its map: pages once read stay in the
process's memory as long as the map does."""


class TensorInfo(NamedTuple):
    """What a file says of a tensor without reading it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightFiles:
    """A checkpoint folder's tensors by the names that its files give them.

    Nothing but headers is read before `read`, and `read` leaves nothing behind: at no time does a process
    hold more of the files than the tensors it asked for.

    Args:
        folder: with `model.safetensors` or `pytorch_model.bin`, or the index of either.
        names: files in `folder`, where they are called otherwise.

    Raises:
        EspanError: there are no weights, or a file of them is missing or not what its name says.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self._torch: dict[Path, _TorchFile] = {}
        for file in [folder / name for name in names] or weight_files(folder):
            self.tensors |= self._describe(file)

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns a tensor on the CPU.

        Args:
            name: of a tensor in the files.
            mapped: the tensor may lie in a memory map of its file (private: writing to it changes no file).
                The processes of a machine then share its pages, and the system can drop them; those that
                were read count as this process's memory as long as the tensor is there. Otherwise the tensor
                has memory of its own, and no map stays open.

        Raises:
            EspanError: the file is damaged.
        """
        file = self.tensors[name].file
        if file in self._torch:
            return self._torch[file].read(name)
        try:
            with safe_open(file, framework="pt", backend="mmap" if mapped else "pread") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise EspanError(f"{file}: {name} cannot be read: {error}") from error

    def same(self, name: str, other: str) -> bool:
        """Says whether two tensors have the same content."""
        one, two = self.tensors[name], self.tensors[other]
        if one[1:] != two[1:]:
            return False
        if one.file == two.file and one.file in self._torch and self._torch[one.file].shared(name, other):
            return True
        return torch.equal(self.read(name), self.read(other))

    def _describe(self, file: Path) -> dict[str, TensorInfo]:
        if file.suffix == ".bin":
            self._torch[file] = _TorchFile(file)
            return self._torch[file].describe()
        try:
            with safe_open(file, framework="pt", backend="pread") as opened:
                return {name: _described(file, name, opened.get_slice(name)) for name in opened.offset_keys()}
        except SafetensorError as error:
            raise EspanError(f"{file} is not a safetensors file ({error}); download it again") from error
        except OSError as error:
            raise EspanError(f"{file} cannot be read: {error}") from error


class _TorchFile:
    """A file as `torch.save` writes it; nothing but tensors is ever unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tensors: dict[str, Tensor] | None = None
        self._read_bytes = 0

    def describe(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(self._file, tuple(t.shape), t.dtype) for name, t in self._mapped().items()}

    def read(self, name: str) -> Tensor:
        tensor = self._mapped()[name].clone()
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _MAPPED_BYTES:
            self._tensors, self._read_bytes = None, 0
        return tensor

    def shared(self, name: str, other: str) -> bool:
        tensors = self._mapped()
        return tensors[name].data_ptr() == tensors[other].data_ptr()

    def _mapped(self) -> dict[str, Tensor]:
        if self._tensors is None:
            try:
                self._tensors = read_published_weights(self._file)
            except ValueError as error:
                raise EspanError(str(error)) from error
        return self._tensors


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold the weights of the model in `folder`.

    Raises:
        EspanError: there are none, or one that the index names is missing.
    """
    names = {file.name for file in folder.iterdir()}
    found = weights_in(names, lambda name: read_json(str(folder / name)))
    if not found:
        raise EspanError(f"{folder} holds no weights (model.safetensors or the like)")
    missing = [name for name in found if name not in names]
    if missing:
        raise EspanError(f"{folder / found[0]} names {missing[0]}, which is not there; fetch that file")
    return [folder / name for name in found if not name.endswith(".json")]


def _described(file: Path, name: str, tensor: Any) -> TensorInfo:
    return TensorInfo(file, tuple(tensor.get_shape()), _dtype(file, name, tensor.get_dtype()))


def _dtype(file: Path, name: str, code: str) -> torch.dtype:
    if code not in _DTYPES:
        raise EspanError(f"{file}: {name} is of type {code}, which is not read here")
    return _DTYPES[code]
