"""The random numbers of a prompt, which lm-eval takes from three places of its process.

A prompt of ours starts from a state of its own, so it does not matter which prompts are made before it, how
many there are or in which process. Given lm-eval's three states instead, it makes lm-eval's prompt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

SHUFFLE_SEED = 42
"""RULER shuffles needles, coded words and documents alike in every prompt."""


@dataclass(frozen=True)
class Draws:
    """Generators that a prompt draws from.

    Attributes:
        choices: what most tasks use, in lm-eval the module `random`.
        numbers: the values of variables, in lm-eval `numpy.random`.
        order: the order of listed words, in lm-eval a generator of the task `cwe`.
    """

    choices: random.Random
    numbers: np.random.RandomState
    order: random.Random


def draws_of(seed: int, *what: object) -> Draws:
    """Returns generators whose state depends on the seed and on `what` they are for, and on nothing else."""
    name = " ".join(map(str, ("ruler", seed, *what)))
    numbers = random.Random(f"{name} numbers").getrandbits(32)
    return Draws(random.Random(name), np.random.RandomState(numbers), random.Random(f"{name} order"))


def shuffled(values: list[str]) -> list[str]:
    """Returns `values` in the order that RULER gives to any list of this length."""
    order = values.copy()
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order
