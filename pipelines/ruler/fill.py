"""How much haystack a prompt takes, so that its tokens fill the length that was asked for.

lm-eval adds haystack in steps of 5 to 500 units until a prompt is too long, and takes a step back; prompts
end up to one step short. Here the size is estimated from two small prompts and corrected by the tokens that
prompts of that size have, which takes two or three encodings of a whole prompt. Where whole units cannot come
close enough, the last one is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipelines.ruler.prompts import Prompt

if TYPE_CHECKING:
    from transformers import BatchEncoding

SLACK = 0.01
"""The share of a length that a prompt may leave empty."""

_FEWEST_STEP, _STEPS = 4, 256
_FINEST = 1 / 4096


class Filled(NamedTuple):
    """A prompt of a certain size and its tokens."""

    size: float
    prompt: Prompt
    encoding: BatchEncoding

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.encoding["input_ids"])


@dataclass(frozen=True)
class Haystack:
    """What can be varied about a prompt.

    Attributes:
        compose: makes the prompt with so many units of haystack, always the same one.
        encode: gives its tokens.
        smallest: the fewest units that it can have.
        largest: the most units, where they end.
    """

    compose: Callable[[float], Prompt]
    encode: Callable[[Prompt], BatchEncoding]
    smallest: int
    largest: int | None = None

    def of(self, size: float) -> Filled:
        """Returns the prompt with `size` units."""
        prompt = self.compose(size)
        return Filled(size, prompt, self.encode(prompt))


class DoesNotFitError(ValueError):
    """No prompt has the length; `tokens` is what the smallest has, or the largest, without its answer."""

    def __init__(self, tokens: int, *, too_long: bool) -> None:
        super().__init__(f"the {'smallest' if too_long else 'largest'} prompt has {tokens} tokens")
        self.tokens, self.too_long = tokens, too_long


def fill(haystack: Haystack, room: int, slack: int) -> Filled:
    """Returns the prompt that has at most `room` tokens and, if one can be made, at least `room - slack`.

    Raises:
        DoesNotFitError: the smallest prompt is longer, or the largest leaves more than `slack` empty.
    """
    below = haystack.of(haystack.smallest)
    if below.tokens > room:
        raise DoesNotFitError(below.tokens, too_long=True)
    below, above = _enclosed(haystack, below, room, slack)
    if above is None:
        if below.tokens < room - slack:
            raise DoesNotFitError(below.tokens, too_long=False)
        return below
    while below.tokens < room - slack and above.size - below.size > _FINEST:
        below, above = _narrowed(haystack, below, above, room, slack)
    return below


def _enclosed(haystack: Haystack, below: Filled, room: int, slack: int) -> tuple[Filled, Filled | None]:
    """Returns a prompt that fits, and one that does not unless the first fills the room or is the largest."""
    step = max(_FEWEST_STEP, room // _STEPS)
    while below.tokens < room - slack:
        size = int(below.size) + step
        if haystack.largest is not None:
            size = min(size, haystack.largest)
        if size <= below.size:
            return below, None
        found = haystack.of(size)
        if found.tokens > room:
            return below, found
        # Less than a token per unit is chance, and must not lead to a haystack of any size.
        per_unit = max(1.0, (found.tokens - below.tokens) / (found.size - below.size))
        step = max(1, int((room - slack / 2 - found.tokens) / per_unit))
        below = found
    return below, None


def _narrowed(
    haystack: Haystack, below: Filled, above: Filled, room: int, slack: int
) -> tuple[Filled, Filled]:
    """Returns a closer pair around the room: whole units first, and between two neighbours parts of one."""
    share = (room - slack / 2 - below.tokens) / (above.tokens - below.tokens)
    size = below.size + min(max(share, 0.1), 0.9) * (above.size - below.size)
    if above.size - below.size > 1:
        size = min(max(round(size), int(below.size) + 1), int(above.size) - 1)
    else:
        size = (below.size + above.size) / 2
    found = haystack.of(size)
    return (below, found) if found.tokens > room else (found, above)
