"""Perplexity by length: the loss of the same tokens, with more and more text before them in view.

A document gives one window: its last `max(lengths)` tokens. At length n the model reads the window's last n
tokens, and the loss of the last `scored` of them counts. So the numbers at different lengths differ by what
the model makes of the context and by nothing else. A model that was trained with a token at the beginning of
texts reads it first, in place of the first of the n tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.prepare.shards import ShardReader
from se_model.loss import chunked_cross_entropy, head_of


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


def score_perplexity(
    model: nn.Module, windows: Tensor, *, scored: int, head_tokens: int = 1024
) -> list[float]:
    """Negative log-likelihood in nats, summed over the last `scored` tokens of each window.

    windows: [N, n] token ids, n > scored. The head runs at the scored positions only, `head_tokens` at once.
    """
    windows = windows.to(next(model.parameters()).device)
    with torch.inference_mode():
        decoder = getattr(model, str(model.base_model_prefix))
        hidden: Tensor = decoder(input_ids=windows, use_cache=False).last_hidden_state
        head = head_of(model)
        return [
            float(chunked_cross_entropy(states, labels, head, chunk_tokens=head_tokens)[0])
            for states, labels in zip(hidden[:, -scored - 1 : -1], windows[:, -scored:], strict=True)
        ]


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
