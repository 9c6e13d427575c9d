"""The words that RULER draws from: lists of the package wonderwords, in the order that lm-eval has them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import overload

from pipelines.ruler.draws import shuffled


class Pairs(Sequence[str]):
    """All `adjective-noun`, each once, in alphabetical order, without building the six millions of them.

    Pairs with one adjective follow each other, except where an adjective and a hyphen begin another
    adjective (`old`, `old-fashioned`): the pairs of such a family are listed.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        self._nouns = sorted(set(nouns))
        families: dict[str, list[str]] = defaultdict(list)
        root = ""
        for adjective in sorted(f"{word}-" for word in set(adjectives)):
            root = root if root and adjective.startswith(root) else adjective
            families[root].append(adjective)
        self._blocks = [self._block(family) for family in families.values()]
        self._ends = list(accumulate(len(self._nouns if isinstance(b, str) else b) for b in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect_right(self._ends, index)
        within = index - (self._ends[number - 1] if number else 0)
        block = self._blocks[number]
        return block + self._nouns[within] if isinstance(block, str) else block[within]

    def _block(self, family: list[str]) -> str | list[str]:
        """Returns the one adjective of a family, or all its pairs."""
        if len(family) == 1:
            return family[0]
        return sorted({adjective + noun for adjective in family for noun in self._nouns})


@cache
def key_words() -> Pairs:
    """Returns the words that are keys and values of needles."""
    lists = _lists()
    return Pairs(lists["adjective"], lists["noun"])


@cache
def listed_words() -> tuple[str, ...]:
    """Returns the words that lists of common words are drawn from."""
    words = sorted({word for words in _lists().values() for word in words})
    return tuple(shuffled(words))


def _lists() -> dict[str, list[str]]:
    from wonderwords import RandomWord

    categories = RandomWord()._categories
    return {name: categories[name] for name in ("noun", "adjective", "verb")}
