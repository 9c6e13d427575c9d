"""Which keys to change so that a training fits its devices: tried one after the other, then together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError, InvalidKeyError

if TYPE_CHECKING:
    from pipelines.recipe.keys.train import TrainKeys

_MOST_TOGETHER = 3
_MORE_WORKERS = (2, 4, 8)


@dataclass(frozen=True)
class Fix:
    """Keys to change.

    Attributes:
        key: the first of them.
        text: all of them, as a recipe has them.
    """

    key: str
    text: str


@dataclass(frozen=True)
class _Change:
    key: str
    value: Any
    text: str


def find_fix(stage: TrainKeys, fits: Callable[[TrainKeys], bool], *, shared: bool) -> Fix | None:
    """Returns the fewest keys with which `stage` fits, of several those that cost least; None if none do.

    Args:
        stage: as it is.
        fits: says whether a changed stage fits; raises InvalidKeyError or EspanError if it is impossible.
        shared: the workers share one memory, so that fewer of them need less.
    """
    changes = list(_changes(stage, shared))
    for together in range(1, _MOST_TOGETHER + 1):
        for chosen in combinations(changes, together):
            if len({each.key for each in chosen}) == together and _works(stage, chosen, fits):
                return Fix(chosen[0].key, " and ".join(each.text for each in chosen))
    return None


def _changes(stage: TrainKeys, shared: bool) -> Iterator[_Change]:
    """Changes that may help, cheapest first: they cost time, exchanges, machines, precision."""
    if not stage.activation_checkpointing:
        yield _Change("activation_checkpointing", True, "activation_checkpointing: true")
    if stage.workers > 1:
        for zero in range(stage.deepspeed.zero + 1, 4):
            section = type(stage.deepspeed)(zero=zero)
            yield _Change("deepspeed", section, f"deepspeed: {{zero: {zero}}}")
    if stage.micro_batch_rows > 1:
        yield _Change("micro_batch_rows", 1, "micro_batch_rows: 1")
    if shared:
        numbers = [each for each in range(stage.workers - 1, 0, -1) if stage.workers % each == 0]
    else:
        for ranks in range(stage.context_parallel + 1, stage.workers + 1):
            if stage.workers % ranks == 0:
                yield _Change("context_parallel", ranks, f"context_parallel: {ranks}")
        numbers = [times * stage.workers for times in _MORE_WORKERS]
    for workers in numbers:
        yield _Change("workers", workers, f"workers: {workers}")
    if stage.precision == "fp32":
        yield _Change("precision", "bf16", "precision: bf16")


def _works(stage: TrainKeys, chosen: tuple[_Change, ...], fits: Callable[[TrainKeys], bool]) -> bool:
    changed = stage.model_copy(update={each.key: each.value for each in chosen})
    try:
        return fits(changed)
    except (InvalidKeyError, EspanError):  # rows that cannot be cut so, a layer that cannot share them
        return False
