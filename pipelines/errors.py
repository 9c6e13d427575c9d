"""Errors that are meant for the user: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EspanError(Exception):
    """Something the user can act on; `espan` prints the message without a traceback and exits with 1."""


class RecipeError(EspanError):
    """One or more problems in a recipe, one line each: `file:line: key: what; did you mean 'x'?`."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class WorkspaceBusyError(EspanError):
    """Another live run holds the workspace."""


class InterruptedRunError(EspanError):
    """A signal asked the run to stop; `signal_number` says which."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class InvalidKeyError(ValueError):
    """A value that a stage refuses, with the key that holds it.

    Stages raise it from pydantic validators and from their checks; the recipe turns it into a `RecipeError`
    that names file and line.

    Args:
        key: dotted path below the place where it is raised (`"sources.0.path"`); empty for that place itself.
        what: what is wrong and what to do, without the key.
        suggestion: the nearest valid spelling, if there is one.
    """

    def __init__(self, key: str, what: str, suggestion: str | None = None) -> None:
        self.key, self.what, self.suggestion = key, what, suggestion
        super().__init__(key, what, suggestion)

    def __str__(self) -> str:
        """Returns the key, what is wrong with it and the suggestion on one line."""
        return (f"{self.key}: " if self.key else "") + self.what + did_you_mean(self.suggestion)


def one_line(message: object) -> str:
    """Returns a message, such as an exception, with every run of white space made one space."""
    return " ".join(str(message).split())


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate spelt most like `word`, or None when none comes close."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(suggestion: str | None) -> str:
    """Returns the tail of a message that offers `suggestion`; empty for None."""
    return f"; did you mean '{suggestion}'?" if suggestion else ""


def split_key(key: str) -> tuple[str | int, ...]:
    """Returns the parts of a dotted key; parts that are digits are positions in a list."""
    return tuple(int(part) if part.isdigit() else part for part in key.split(".")) if key else ()
