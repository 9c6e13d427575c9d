"""Essays as a haystack: a stretch of text of any length, divided into sentences as lm-eval divides it.

lm-eval ends a haystack where its essays end, and prompts that should be longer stay short. RULER's own
program repeats the essays from their start, and so do we. Sentences come from nltk's Punkt without trained
parameters, since lm-eval's need a download. Punkt tells the end of a sentence by the words on both sides of
it, so essays are divided once, and every prompt takes the sentences that it has room for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from pipelines.errors import EspanError
from pipelines.ruler.prompts import divide
from pipelines.system import storage

SHIPPED = str(Path(__file__).parents[1] / "assets" / "essays")
"""Abraham Lincoln's annual messages to Congress, 164 KB."""


class Essays:
    """Words that repeat without end, and the sentences that they form.

    Args:
        words: at least one.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._cycle = "".join(f"{word} " for word in words)
        self._words = [0, *accumulate(len(word) + 1 for word in words)]  # where each begins, and the end

    @property
    def sha256(self) -> str:
        """The hash of the words."""
        return hashlib.sha256(self._cycle.encode("utf-8", "surrogatepass")).hexdigest()

    def sentences(self, size: float) -> list[str]:
        """Returns the sentences of the first `size` words; of a fraction of a word, its first letters."""
        text = self._text(size)
        starts = [start for start in self._starts(len(text)) if start < len(text)]
        return [text[start:end].rstrip() for start, end in pairwise([*starts, len(text)])]

    def _text(self, size: float) -> str:
        whole, fraction = divide(size)
        times, words = divmod(whole, len(self._words) - 1)
        letters = self._words[words + 1] - self._words[words] - 1
        end = times * len(self._cycle) + self._words[words] + round(fraction * letters)
        return (self._cycle * (times + 1))[:end].rstrip()

    def _starts(self, characters: int) -> list[int]:
        """Returns where sentences begin, at least as far as `characters`."""
        first, repeated = self._sentences
        times = range(1, characters // len(self._cycle) + 1)
        return [*first, *(time * len(self._cycle) + start for time in times for start in repeated)]

    @cached_property
    def _sentences(self) -> tuple[list[int], list[int]]:
        """Where sentences begin when the words are read first, and when they are read again."""
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        twice = (self._cycle * 2).rstrip()
        starts = [start for start, _ in PunktSentenceTokenizer().span_tokenize(twice)]
        again = len(self._cycle)
        return [at for at in starts if at < again], [at - again for at in starts if at >= again]


def read_essays(folder: str | None) -> Essays:
    """Returns the text of every `*.txt` below a folder, in the order of their names; default: `SHIPPED`.

    Raises:
        EspanError: names the folder or the file that holds no text.
    """
    place = SHIPPED if folder is None else folder
    if not storage.is_folder(place):
        raise EspanError(f"essays {place}: no such folder; name one that holds text files (*.txt)")
    names = sorted(name for name in storage.list_names(place) if name.endswith(".txt"))
    if not names:
        raise EspanError(f"essays {place}: the folder holds no text file (*.txt); name one that does")
    words = [word for name in names for word in _words(storage.join(place, name))]
    return Essays(words)


def _words(place: str) -> list[str]:
    try:
        words = storage.read_bytes(place).decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise EspanError(f"essays {place}: not UTF-8: {error.reason} at byte {error.start}") from error
    if not words:
        raise EspanError(f"essays {place}: the file holds no text; take it out of the folder")
    return words
