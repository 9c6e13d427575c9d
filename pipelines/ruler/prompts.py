"""What a prompt is, whatever its task, and how a haystack that must not be whole is cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A prompt and its answers.

    Attributes:
        input: what the model reads, up to `gen_prefix`.
        gen_prefix: the beginning of the answer, which the model is given too.
        outputs: the strings that are looked for in what the model writes.
        asked: the stretches of `input` that hold the answers, where each answer stands in one place.
        input_example: a solved example that lm-eval keeps beside the prompt; the model does not see it.
    """

    input: str
    gen_prefix: str
    outputs: list[str]
    asked: tuple[str, ...] = ()
    input_example: str | None = None


def divide(size: float) -> tuple[int, float]:
    """Returns how many whole units of haystack `size` is, and which fraction of one more."""
    whole = int(size)
    return whole, size - whole


def beginning(unit: str, fraction: float) -> str:
    """Returns the first `fraction` of a unit's characters, without white space at its end."""
    return unit[: round(fraction * len(unit))].rstrip()
