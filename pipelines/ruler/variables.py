"""Variable tracking: one value, handed from variable to variable; which of them have it?

Templates are RULER's (a misspelling included); what is drawn, and in which order, is as in lm-eval 0.4.13,
`vt_utils.py` of `tasks/ruler`. A prompt begins with a solved example, in which only the variables' names
differ from prompt to prompt.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from itertools import count, pairwise

from pipelines.ruler.draws import Draws
from pipelines.ruler.needles import NOISE
from pipelines.ruler.prompts import Prompt, beginning, divide

EXAMPLE_TOKENS = 500
"""How long the solved example is at most, with room for its answer."""

_HOPS = 4
_LETTERS, _LETTERS_OF_EXAMPLE = 5, 3
_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
_ANSWER = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{number} variables are assgined the value {value}, they are: "
)


def variable_prompt(size: float, draws: Draws, example: str) -> Prompt:
    """Returns a prompt among `size` lines of noise, at least one, behind a solved example."""
    text, prefix, variables = _problem(size, draws, _LETTERS)
    return Prompt(_renamed(example, draws.choices) + "\n\n" + text, prefix.strip(), variables)


def solved_example(size: float, draws: Draws) -> str:
    """Returns a problem among `size` lines of noise, at least one, and its answer."""
    text, prefix, variables = _problem(size, draws, _LETTERS_OF_EXAMPLE)
    return f"{text}{prefix} {' '.join(variables)}\n\n"


def longest_example(draws: Callable[[], Draws], fits: Callable[[str], bool]) -> str:
    """Returns the solved example with all the noise with which it `fits`, at least one line.

    Args:
        draws: gives the same state at every call.
        fits: says of an example whether there is room for it.
    """
    lines = next(lines for lines in count(1) if not fits(solved_example(lines + 1, draws())))
    return solved_example(lines, draws())


def _problem(size: float, draws: Draws, letters: int) -> tuple[str, str, list[str]]:
    """Returns a problem, the beginning of its answer, and the variables to be found."""
    variables: dict[str, None] = {}
    while len(variables) <= _HOPS:
        variables[_name(letters, draws.choices)] = None
    names = list(variables)
    value = str(draws.numbers.randint(10000, 99999))
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    whole, fraction = divide(size)
    lines = _noise(whole, more_than=len(chain))
    places = sorted(draws.choices.sample(range(len(lines)), len(chain)))
    for inserted, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + inserted, assignment)
    if rest := beginning(NOISE, fraction):
        lines.append(rest)
    context = " ".join(lines).replace(". \n", ".\n")
    answer = _ANSWER.format(number=len(names), value=value)
    return _TEMPLATE.format(context=context, value=value), answer, names


def _noise(lines: int, *, more_than: int) -> list[str]:
    """Returns lines of noise, or their sentences where there would not be more than `more_than`."""
    line = f"{NOISE}\n"
    if lines > more_than:
        return [line] * lines
    sentences = line.split(".")
    return [f"{part}." if part.strip() else part for _ in range(lines) for part in sentences]


def _name(letters: int, choices: random.Random) -> str:
    return "".join(choices.choices(string.ascii_uppercase, k=letters))


def _renamed(example: str, choices: random.Random) -> str:
    """Returns the example with other names for the variables, which its answer lists."""
    _, _, answer = example.partition(_ANSWER[-10:])
    for variable in answer.split():
        example = example.replace(variable, _name(len(variable), choices))
    return example
