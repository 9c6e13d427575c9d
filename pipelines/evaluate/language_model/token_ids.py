"""Tokens of requests in four bytes each: an evaluation holds those of all its prompts at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

_TYPE, _BYTES = "i", array("i").itemsize


@dataclass(frozen=True, slots=True)
class TokenIds(Sequence[int]):
    """A sequence of token ids, equal to another and hashed by its ids.

    A tuple takes 8 bytes for a token and 28 for its number, and pickles number by number.

    Attributes:
        content: the ids as C integers, one after the other.
    """

    content: bytes

    @classmethod
    def of(cls, ids: Iterable[int]) -> TokenIds:
        """Returns these ids.

        Raises:
            OverflowError: one is beyond 32 bits.
        """
        return cls(array(_TYPE, ids).tobytes())

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> TokenIds: ...
    def __getitem__(self, at: int | slice) -> int | TokenIds:
        found = self._array()[at]
        return found if isinstance(found, int) else TokenIds(found.tobytes())

    def __len__(self) -> int:
        return len(self.content) // _BYTES

    def __iter__(self) -> Iterator[int]:
        return iter(self._array())

    def __add__(self, other: TokenIds) -> TokenIds:
        return TokenIds(self.content + other.content)

    def _array(self) -> array[int]:
        return array(_TYPE, self.content)
