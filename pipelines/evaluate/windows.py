"""The held-out documents of which perplexity is measured: a window is a document's last tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import EspanError
from pipelines.prepare.shards import ShardReader


@dataclass(frozen=True)
class WindowSource:
    """Where windows come from: the shards, and for each window the row and where its document ends there.

    Every window begins with the token `bos`, if there is one.
    """

    shards: str
    ends: tuple[tuple[int, int], ...]
    bos: int | None = None

    def read(self, first: int, count: int, length: int) -> Tensor:
        """Returns the last `length` tokens of windows `first` to `first + count`: int64 [count, length]."""
        reader = _reader(self)
        rows = [reader.row(row)[0][end - length : end] for row, end in self.ends[first : first + count]]
        windows = np.stack(rows).astype(np.int64)
        if self.bos is not None:
            windows[:, 0] = self.bos
        return torch.from_numpy(windows)


@lru_cache(maxsize=1)
def _reader(source: WindowSource) -> ShardReader:
    """Reads the manifest and maps the shards once in each worker."""
    return ShardReader(source.shards)


def find_windows(shards: str, *, longest: int, windows: int) -> WindowSource:
    """Finds the first `windows` documents of at least `longest` tokens; fewer if there are not that many.

    Raises:
        EspanError: no document is that long.
    """
    reader = ShardReader(shards)
    ends: list[tuple[int, int]] = []
    longest_document = 0
    for row, end, tokens in _documents(reader):
        longest_document = max(longest_document, tokens)
        if tokens >= longest:
            ends.append((row, end))
            if len(ends) == windows:
                break
    if not ends:
        raise EspanError(
            f"{shards}: perplexity at {longest} tokens needs documents that long, "
            f"the longest has {longest_document}; lower perplexity.lengths, or prepare longer ones"
        )
    return WindowSource(shards, tuple(ends))


def _documents(reader: ShardReader) -> Iterator[tuple[int, int, int]]:
    """Yields (row, end, tokens) of every document, or of every row where documents run into each other."""
    concatenated = reader.manifest.packing == "concatenate"
    for row in range(len(reader)):
        input_ids, lengths = reader.row(row)
        pieces: Sequence[int] = [len(input_ids)] if concatenated else [int(length) for length in lengths]
        end = 0
        for tokens in pieces:
            end += tokens
            yield row, end, tokens
