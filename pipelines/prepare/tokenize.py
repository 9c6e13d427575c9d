"""Tokenises one part of a corpus into a file of tokens; runs on Ray workers, one part at a time.

A part streams through: memory is that of about `_BATCH_CHARACTERS` of text (and of the longest document's
text), whatever the size of the part.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Encoding, Tokenizer

from pipelines.prepare.parts import PartSummary, part_file, read_summary, write_array, write_summary
from pipelines.prepare.read import CorpusPart, Document, Reject, read_part
from pipelines.recipe.keys.prepare import AnySource
from pipelines.system import storage
from pipelines.system.streams import atomic_stream

_BATCH_CHARACTERS = 1 << 18  # tokenising takes some 250 bytes of memory for each character
_LEAD_CHARACTERS = 32  # read again before each stretch of a long text but the first


@dataclass(frozen=True)
class TokenizeTask:
    """What to do with one part.

    Attributes:
        index: ordinal of the part.
        key: what the result is made of.
        seed: for generated documents.
    """

    index: int
    key: str
    part: CorpusPart
    source: AnySource
    seed: int
    work: str


def tokenize_part(
    task: TokenizeTask, definition: str, end_of_document: int | None, bos: int | None = None
) -> PartSummary:
    """Writes the tokens of a part, or finds them written by an earlier run.

    Args:
        task: the part.
        definition: the tokenizer as `tokenizers.Tokenizer.to_str` spells it.
        end_of_document: the token appended to each document, if any.
        bos: the token put before each document, if any.

    Raises:
        EspanError: a file of the part cannot be read.
    """
    place = part_file(task.work, task.index, "json")
    if done := read_summary(place, PartSummary, task.key):
        return done
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a task one core
    tokenizer = _tokenizer(definition)
    rejects: list[Reject] = []
    encodings: Counter[str] = Counter()
    lengths: list[int] = []
    documents = _usable_texts(read_part(task.source, task.part, task.seed, tokenizer), rejects, encodings)
    with atomic_stream(part_file(task.work, task.index, "tokens")) as stream:
        for tokens in encode_documents(tokenizer, documents):
            before = [] if bos is None else [bos]
            after = [] if end_of_document is None else [end_of_document]
            tokens = np.concatenate([before, tokens, after]).astype(np.int32)
            stream.write(tokens.astype("<i4", copy=False).tobytes())
            lengths.append(len(tokens))
    write_array(part_file(task.work, task.index, "lengths"), np.array(lengths, dtype=np.int32))
    lines = "".join(json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects)
    storage.write_text_atomic(part_file(task.work, task.index, "rejects"), lines)
    summary = PartSummary(
        key=task.key,
        documents=len(lengths),
        tokens=sum(lengths),
        rejected=len(rejects),
        encodings=dict(sorted(encodings.items())),
    )
    write_summary(place, summary)
    return summary


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the tokens of each text, int32 [N], without special tokens; texts go through in batches.

    A text longer than a batch is tokenised in stretches, so that memory stays bounded. They are cut at line
    ends, or else at blanks, and each is read behind the end of the one before it: that changes no token under
    tokenizers of the common kinds, those that mark the beginning of a text (SentencePiece's) among them.
    """
    for batch in _batches(texts):
        if len(batch) == 1:
            yield np.concatenate(list(_stretch_by_stretch(tokenizer, batch[0])))
        else:
            yield from map(_tokens, tokenizer.encode_batch_fast(batch, add_special_tokens=False))


def _stretch_by_stretch(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    start = 0
    for stretch in stretches(text, _BATCH_CHARACTERS):
        yield _continued(tokenizer, text[max(0, start - _LEAD_CHARACTERS) : start], stretch)
        start += len(stretch)


def _continued(tokenizer: Tokenizer, lead: str, stretch: str) -> np.ndarray:
    """Returns the tokens of `stretch` behind `lead`."""
    alone, together = map(
        _tokens, tokenizer.encode_batch_fast([lead, lead + stretch], add_special_tokens=False)
    )
    if np.array_equal(together[: len(alone)], alone):
        return together[len(alone) :]
    # A token spans the border, so the lead's tokens cannot be separated from the stretch's.
    return _tokens(tokenizer.encode_batch_fast([stretch], add_special_tokens=False)[0])


def stretches(text: str, limit: int) -> Iterator[str]:
    """Cuts a text into pieces of at most `limit` characters, at line ends or, without any, before blanks."""
    start = 0
    while len(text) - start > limit:
        stop = _border(text, start, start + limit)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _border(text: str, start: int, stop: int) -> int:
    """Returns the last position in (start, stop] that no token spans; where there is none, `stop`.

    Pre-tokenizers of every common kind (GPT-2's, Llama 3's) begin anew after a line end between two words.
    Where there are only runs of white space, those of GPT-2's kind split before the last character of a run.
    Without line ends, a single blank belongs to the word behind it.
    """
    for alone in (True, False):
        at = stop
        while (at := text.rfind("\n", start + 1, at)) > start:
            if not text[at + 1].isspace() and not (alone and text[at - 1].isspace()):
                return at + 1 if alone else at
    at = stop
    while (at := text.rfind(" ", start + 1, at)) > start:
        if not text[at - 1].isspace() and not text[at + 1].isspace():
            return at
    return stop


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _tokens(encoding: Encoding) -> np.ndarray:
    return np.array(encoding.ids, dtype=np.int32)


def _usable_texts(
    read: Iterable[Document | Reject], rejects: list[Reject], encodings: Counter[str]
) -> Iterator[str]:
    for item in read:
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        if item.encoding is not None:
            encodings[item.encoding] += 1
        yield item.text


@lru_cache(maxsize=2)
def _tokenizer(definition: str) -> Tokenizer:
    """Builds the tokenizer once in each worker process."""
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
