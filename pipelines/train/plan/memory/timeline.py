"""The memory of a forward and backward pass as stretches, of which layers of a kind share theirs.

Each layer of a model is one stretch of the forward pass and one of the backward pass. What a stretch adds,
and how far it rises above its start in between, is counted for the first layer of each kind; the others are
stood in for while counting, and repeat it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Bytes alive over a part of a pass.

    Attributes:
        name: what goes on.
        change: at its end, compared with its start.
        rise: the most, above its start.
        gradients: trained numbers whose gradients are complete when it ends, and were not before.
    """

    name: str
    change: int = 0
    rise: int = 0
    gradients: int = 0

    def then(self, other: Stretch) -> Stretch:
        """Returns both, one after the other, as one."""
        return Stretch(
            self.name,
            self.change + other.change,
            max(self.rise, self.change + other.rise),
            self.gradients + other.gradients,
        )


@dataclass(frozen=True)
class Moment:
    """What a pass holds at its fullest.

    Attributes:
        kept: bytes that lay there when the stretch with the peak began: what earlier stretches keep.
        rise: bytes above that.
        where: name of the stretch.
        gradients: trained numbers whose gradients are complete by then.
    """

    kept: int
    rise: int
    where: str
    gradients: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.kept + self.rise


def moments(stretches: Iterable[Stretch]) -> list[Moment]:
    """Returns the fullest moment of every stretch, in order."""
    found = []
    level = gradients = 0
    for stretch in stretches:
        gradients += stretch.gradients
        found.append(Moment(level, stretch.rise, stretch.name, gradients))
        level += stretch.change
    return found


def unfold(
    before: Stretch,
    forward: Sequence[Stretch],
    between: Stretch,
    backward: Sequence[Stretch],
    after: Stretch,
    layers: Sequence[int],
) -> list[Stretch]:
    """Returns the stretches of all layers.

    Args:
        before: embeddings and what else comes before the first layer.
        forward: of each kind of layer.
        between: the last norm, the loss and its gradient.
        backward: of each kind of layer.
        after: gradients of the embeddings.
        layers: the kind of each layer, in order.
    """
    return [
        before,
        *(forward[kind] for kind in layers),
        between,
        *(backward[kind] for kind in reversed(layers)),
        after,
    ]
