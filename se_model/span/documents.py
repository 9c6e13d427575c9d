"""Where the documents of a packed row begin and end, and what an attention may be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what no attention here can serve.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], of the same dtype and device; G divides H; L is at
    least 1.

    Raises:
        ValueError: naming the shapes, dtypes or devices that do not fit together.
    """
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"attention takes q [B, H, L, D], k [B, G, L, D] and v [B, G, L, Dv]; got {shapes}")
    batch, heads, length, width = q.shape
    if (k.shape[0], k.shape[3]) != (batch, width):
        raise ValueError(f"q and k must agree in batch size and head dimension; got {shapes}")
    if k.shape[2] != length:
        raise ValueError(f"q and k must be equally long (no decoding over a cache here); got {shapes}")
    if length == 0:
        raise ValueError(f"attention needs at least one token; got {shapes}")
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"the number of key/value heads must divide the number of query heads; got {shapes}")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q, k and v must share dtype and device; got {q.dtype} on {q.device}, {k.dtype} on {k.device}, "
            f"{v.dtype} on {v.device}"
        )


@dataclass(frozen=True)
class DocumentBounds:
    """Where the documents of one packed row begin, and where the last one ends, as integers on the host.

    Made once per batch and handed to every layer, so that no layer has to ask a device for a number.
    Wherever ``cu_seqlens`` is taken, this is taken too.

    Attributes:
        bounds: (0, ..., L), strictly increasing.

    Raises:
        ValueError: if the bounds are not that.
    """

    bounds: tuple[int, ...]
    _on_device: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_ends(self.bounds, self.bounds[-1] if self.bounds else 0)
        for index, (start, end) in enumerate(pairwise(self.bounds)):
            if end <= start:
                raise ValueError(
                    "cu_seqlens must increase strictly; "
                    f"entries {index} and {index + 1} are {start} and {end}"
                )

    @classmethod
    def of(cls, cu_seqlens: Documents, length: int, batch: int = 1) -> DocumentBounds:
        """The documents of a batch of ``batch`` rows of ``length`` tokens.

        cu_seqlens: int32 or int64 [N + 1], from 0 to ``length``, strictly increasing. A tensor on a GPU is
        read here, which waits for the GPU; bounds that exist already are only checked.

        Raises:
            ValueError: if ``cu_seqlens`` is not that, or comes with more than one row.
        """
        if batch != 1:
            raise ValueError(
                f"cu_seqlens describes one packed row, but the batch has {batch}: "
                "flatten the rows into one first"
            )
        if isinstance(cu_seqlens, DocumentBounds):
            _check_ends(cu_seqlens.bounds, length)
            return cu_seqlens
        return cls._read(cu_seqlens, length)

    @classmethod
    def read(cls, cu_seqlens: Documents) -> DocumentBounds:
        """As `of`, where nothing else tells the row's length."""
        return cu_seqlens if isinstance(cu_seqlens, DocumentBounds) else cls._read(cu_seqlens, None)

    @classmethod
    def _read(cls, cu_seqlens: Tensor, length: int | None) -> DocumentBounds:
        if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 2:
            raise ValueError(
                "cu_seqlens must be an int32 or int64 tensor [N + 1] with N >= 1 documents; "
                f"got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
            )
        bounds = tuple(cu_seqlens.tolist())
        _check_ends(bounds, bounds[-1] if length is None else length)
        documents = cls(bounds)
        documents._on_device["cu_seqlens", cu_seqlens.device] = cu_seqlens.to(torch.int32)
        return documents

    @property
    def length(self) -> int:
        """L, tokens of the row."""
        return self.bounds[-1]

    def cu_seqlens(self, device: torch.device | str) -> Tensor:
        """The bounds as a tensor, made once per device: int32 [N + 1]."""
        return self._made("cu_seqlens", device, self._cu_seqlens)

    def index(self, device: torch.device | str) -> Tensor:
        """The document that each token belongs to, counted from 0: int64 [L]; made at each call."""
        tokens = torch.arange(self.length, device=device, dtype=torch.int32)
        return torch.searchsorted(self.cu_seqlens(device), tokens, right=True) - 1

    def position_ids(self, device: torch.device | str) -> Tensor:
        """The position of each token in its document, made once per device: int64 [1, L], counted from 0."""
        return self._made("position_ids", device, self._position_ids)

    def _made(self, name: str, device: torch.device | str, make: Callable[[torch.device], Tensor]) -> Tensor:
        key = name, torch.device(device)
        if key not in self._on_device:
            # What is first needed in inference mode may be needed in training next.
            with torch.inference_mode(False):
                self._on_device[key] = make(key[1])
        return self._on_device[key]

    def _cu_seqlens(self, device: torch.device) -> Tensor:
        return torch.tensor(self.bounds, dtype=torch.int32, device=device)

    def _position_ids(self, device: torch.device) -> Tensor:
        starts = self.cu_seqlens(device)[self.index(device)]
        return (torch.arange(self.length, device=device) - starts)[None]


def _check_ends(bounds: tuple[int, ...], length: int) -> None:
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != length:
        ends = f"{bounds[0]} to {bounds[-1]}" if bounds else "nothing"
        raise ValueError(f"cu_seqlens must run from 0 to L = {length}; got {ends}")


Documents = Tensor | DocumentBounds
"""What a public function takes as ``cu_seqlens``: a tensor [N + 1], or what was made of it once."""


def document_bounds(cu_seqlens: Documents | None, length: int, batch: int = 1) -> tuple[int, ...]:
    """The places where documents begin, and the end of the last: (0, ..., length).

    cu_seqlens: as `DocumentBounds.of` takes it; None means one document.

    Raises:
        ValueError: if ``cu_seqlens`` does not fit, or comes with more than one row.
    """
    if cu_seqlens is None:
        return (0, length)
    return DocumentBounds.of(cu_seqlens, length, batch).bounds
