"""A tokenised corpus as the packer sees it: where every document's tokens lie, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from pipelines.prepare.pack import RowPlan, Segment, draw, held_out, pack
from pipelines.prepare.parts import PartSummary, part_file, read_array
from pipelines.prepare.read import CorpusPart
from pipelines.prepare.shards import SourceEntry, Split
from pipelines.prepare.sources import label_of
from pipelines.recipe.keys.common import Packing
from pipelines.recipe.keys.prepare import AnySource


@dataclass
class Corpus:
    """All documents, numbered through the parts in order: their lengths, and where their tokens lie.

    Attributes:
        sources: as in the recipe.
        parts: as planned.
        summaries: what tokenising each part gave.
        lengths: tokens of every document, int32 [documents].
    """

    sources: Sequence[AnySource]
    parts: Sequence[CorpusPart]
    summaries: Sequence[PartSummary]
    lengths: np.ndarray
    _first_token: np.ndarray = field(init=False)
    _part_first_token: np.ndarray = field(init=False)
    _document_part: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        counts = [summary.documents for summary in self.summaries]
        self._first_token = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._part_first_token = np.concatenate([[0], np.cumsum([each.tokens for each in self.summaries])])
        self._document_part = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @classmethod
    def read(
        cls,
        sources: Sequence[AnySource],
        parts: Sequence[CorpusPart],
        summaries: Sequence[PartSummary],
        work: str,
    ) -> Corpus:
        """Reads the lengths that the parts' tasks left in the folder `work`."""
        lengths = [read_array(part_file(work, index, "lengths"), "i4") for index in range(len(parts))]
        return cls(sources, parts, summaries, np.concatenate([np.zeros(0, np.int32), *lengths]))

    def splits(self, holdout: float, seed: int) -> dict[Split, list[np.ndarray]]:
        """Returns, for each split (`train`, `holdout`) and source, the numbers of its documents in order."""
        part_source = np.array([part.source for part in self.parts])
        document_source = part_source[self._document_part]
        train, held = [], []
        for source in range(len(self.sources)):
            (numbers,) = np.nonzero(document_source == source)
            chosen = held_out(self.lengths[numbers], holdout, seed, source)
            train.append(numbers[~chosen])
            held.append(numbers[chosen])
        return {"train": train, "holdout": held}

    def locate(self, row: int, segment: Segment) -> tuple[int, int, int, int]:
        """Returns the line of a shard's plan that stands for a segment (see `write.PLAN_COLUMNS`)."""
        part = int(self._document_part[segment.document])
        first = int(self._first_token[segment.document]) + segment.start - int(self._part_first_token[part])
        return row, part, first, segment.length

    def tokens(self, source: int) -> int:
        """Returns how many tokens a source has."""
        return sum(summary.tokens for summary in self._of(source))

    def rejected(self, source: int) -> int:
        """Returns how many documents of a source were rejected."""
        return sum(summary.rejected for summary in self._of(source))

    def _encodings(self, source: int) -> dict[str, int]:
        total: Counter[str] = Counter()
        for summary in self._of(source):
            total.update(summary.encodings)
        return dict(sorted(total.items()))

    def _of(self, source: int) -> Iterator[PartSummary]:
        pairs = zip(self.parts, self.summaries, strict=True)
        return (summary for part, summary in pairs if part.source == source)

    def entry(self, source: int, documents: np.ndarray, drawn: int, packed: int) -> SourceEntry:
        """Returns the manifest's account of one source in one split, of whose tokens `drawn` were drawn."""
        tokens = int(self.lengths[documents].sum(dtype=np.int64))
        return SourceEntry(
            source=label_of(self.sources[source]),
            weight=self.sources[source].weight,
            documents=len(documents),
            tokens=tokens,
            packed_tokens=packed,
            left_out_tokens=tokens - drawn,
            dropped_tokens=drawn - packed,
            rejected_documents=self.rejected(source),
            encodings=self._encodings(source),
        )


class SplitPlan:
    """Draws and packs the documents of one split; knows, at the end, what became of each source's tokens."""

    def __init__(self, corpus: Corpus, documents: list[np.ndarray]) -> None:
        self.rows = 0
        self._corpus, self._documents = corpus, documents
        self._drawn = np.zeros(len(documents), dtype=np.int64)
        self._packed = np.zeros(len(documents), dtype=np.int64)
        self._source = np.full(len(corpus.lengths), -1, dtype=np.int16)
        for source, numbers in enumerate(documents):
            self._source[numbers] = source

    def shards(self, sequence_length: int, packing: Packing, rows_per_shard: int) -> Iterator[np.ndarray]:
        """Yields the plan of each shard, int64 [segments, 4]."""
        weights = [source.weight for source in self._corpus.sources]
        drawn = self._count_drawn(draw(self._documents, self._corpus.lengths, weights))
        rows = pack(drawn, self._corpus.lengths, sequence_length, packing)
        while shard := list(islice(rows, rows_per_shard)):
            self.rows += len(shard)
            yield self._plan(shard)

    def entries(self) -> tuple[SourceEntry, ...]:
        """Returns the account of each source, once every shard is planned."""
        counted = zip(self._documents, self._drawn.tolist(), self._packed.tolist(), strict=True)
        return tuple(self._corpus.entry(source, *counts) for source, counts in enumerate(counted))

    def _plan(self, rows: Sequence[RowPlan]) -> np.ndarray:
        for row in rows:
            for segment in row:
                self._packed[self._source[segment.document]] += segment.length
        lines = [self._corpus.locate(number, segment) for number, row in enumerate(rows) for segment in row]
        return np.array(lines, dtype=np.int64)

    def _count_drawn(self, documents: Iterable[int]) -> Iterator[int]:
        for document in documents:
            self._drawn[self._source[document]] += self._corpus.lengths[document]
            yield document
