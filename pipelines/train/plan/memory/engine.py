"""What DeepSpeed (0.19.8) and AdamW hold beside a pass, and when a worker is at its fullest.

Read from `runtime/zero/stage_1_and_2.py`, `stage3.py` and `partition_parameters.py`, and compared with what
small trainings hold. ZeRO 0 stands for a plain loop with torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from pipelines.train.plan.memory.parts import MemoryParts
from pipelines.train.plan.memory.timeline import Moment

BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's own default of `reduce_bucket_size`; smaller models get smaller buckets."""

_LIVE_NUMBERS = 1_000_000_000  # stage3_max_live_parameters, stage3_max_reuse_distance
_GATHERED_AT_ONCE = 50_000_000  # stage3_prefetch_bucket_size
_WIDE = 4  # bytes of a float32 number


@dataclass(frozen=True)
class Weights:
    """The parameters of a model, each stored once.

    Attributes:
        numbers: of all.
        itemsize: bytes of one.
        trained: numbers of each tensor that trains: those of matrices, and those of vectors, which the
            optimizer keeps apart.
        largest: numbers of the largest tensor.
        buffers: bytes beside the parameters.
    """

    numbers: int
    itemsize: int
    trained: tuple[tuple[int, ...], tuple[int, ...]]
    largest: int = 0
    buffers: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Weights:
        """Returns the weights that `dataclasses.asdict` described, after a way through JSON."""
        matrices, vectors = fields["trained"]
        return cls(**{**fields, "trained": (tuple(matrices), tuple(vectors))})

    @property
    def trained_numbers(self) -> int:
        """All numbers that train."""
        return sum(map(sum, self.trained))

    @property
    def largest_trained(self) -> int:
        """Numbers of the largest tensor that trains."""
        return max((size for group in self.trained for size in group), default=0)


@dataclass(frozen=True)
class Sharing:
    """How training state is split.

    Attributes:
        zero: DeepSpeed's stage; 0 for a plain loop.
        workers: over how many.
        accumulating: a step has several micro-batches.
        gpu: AdamW runs on a GPU, where torch updates all tensors at once.
    """

    zero: int
    workers: int
    accumulating: bool
    gpu: bool


def fullest(weights: Weights, sharing: Sharing, moments: Sequence[Moment]) -> MemoryParts:
    """Returns what one worker holds when it holds most.

    Args:
        weights: the model's.
        sharing: how state is split.
        moments: the fullest of every stretch of a forward and backward pass.
    """
    held = (_Plain if sharing.zero == 0 else _Sharded if sharing.zero == 3 else _Split)(weights, sharing)
    candidates = [held.in_pass(moment) for moment in moments]
    candidates += [held.reducing(), held.stepping()]
    return max(candidates, key=lambda parts: parts.total)


class _Plain:
    """A loop with torch's AdamW, and what the others share with it."""

    def __init__(self, weights: Weights, sharing: Sharing) -> None:
        self.weights, self.sharing = weights, sharing
        self.width = weights.itemsize
        self.trained = weights.trained_numbers
        self.bucket = min(BUCKET_NUMBERS, self.trained)
        self.own = -(-self.trained // sharing.workers)

    def always(self) -> MemoryParts:
        """Memory that is held all the time."""
        weights = self.weights.numbers * self.width + self.weights.buffers
        return MemoryParts(weights=weights, optimizer=2 * self.width * self.trained)

    def in_pass(self, moment: Moment) -> MemoryParts:
        """At a moment of a forward or backward pass."""
        gradients = self.trained if self.sharing.accumulating else min(moment.gradients, self.trained)
        loss = moment.where == "between"
        return replace(
            self.always(),
            gradients=self.width * gradients,
            activations=max(0, moment.kept),
            loss=moment.rise if loss else 0,
            transient=0 if loss else moment.rise,
            moment="in the loss" if loss else "in a layer",
        )

    def reducing(self) -> MemoryParts:
        """While gradients are summed over the workers, after the last pass."""
        return self.always()

    def stepping(self) -> MemoryParts:
        """In the optimizer's step."""
        # torch's AdamW makes a square root, and on a CPU the quotient beside it, one tensor after the other.
        temporary = self.trained if self.sharing.gpu else 2 * self.weights.largest_trained
        return replace(
            self.always(),
            gradients=self.width * self.trained,
            transient=self.width * temporary,
            moment="in the optimizer's step",
        )


class _Split(_Plain):
    """ZeRO 1 and 2: the optimizer works on the own share of all trained numbers, laid end to end."""

    def always(self) -> MemoryParts:
        """Weights, plus a float32 copy and two moments of the worker's own share."""
        weights = self.weights.numbers * self.width + self.weights.buffers
        return MemoryParts(weights=weights, optimizer=3 * _WIDE * self.own)

    def in_pass(self, moment: Moment) -> MemoryParts:
        """A bucket collects gradients; stage 1 keeps all until the step, stage 2 the worker's share."""
        kept = self._kept_gradients()
        if not self.sharing.accumulating:
            kept = min(kept, moment.gradients) if self._waits() else min(kept, self._summed(moment))
        # Buckets that fill before the end are summed, in a copy, while activations lie there.
        buckets = self.bucket * (1 if self._waits() or self.bucket == self.trained else 2)
        return replace(super().in_pass(moment), gradients=self.width * kept, buckets=self.width * buckets)

    def reducing(self) -> MemoryParts:
        """The bucket, its sum, and what is kept."""
        kept = self._kept_gradients() if self.sharing.accumulating or self._waits() else 0
        new = self.own_tensors()
        sums = new if self._waits() else max(self.bucket, new)
        return replace(
            self.always(),
            gradients=self.width * kept,
            buckets=self.width * self.bucket,
            transient=self.width * min(sums, self.bucket),
            moment="while gradients are summed",
        )

    def stepping(self) -> MemoryParts:
        """The own gradients, in float32 once more, and AdamW's temporaries."""
        temporary = self.own if self.sharing.gpu else 2 * self.own
        return replace(
            self.always(),
            gradients=self.width * self.own_tensors() + _WIDE * self.own,
            transient=_WIDE * temporary,
            moment="in the optimizer's step",
        )

    def own_tensors(self) -> int:
        """Numbers of the tensors that lie in a worker's share, also of those that reach beyond it; the most
        of any worker.
        """
        shares = [0] * self.sharing.workers
        for group in self.weights.trained:
            own = max(1, -(-sum(group) // self.sharing.workers))
            for end, size in zip(accumulate(group), group, strict=True):
                for worker in range((end - size) // own, (end - 1) // own + 1):
                    shares[worker] += size
        return max(shares)

    def _waits(self) -> bool:
        return self.sharing.zero == 1

    def _kept_gradients(self) -> int:
        return self.trained if self._waits() else self.own_tensors()

    def _summed(self, moment: Moment) -> int:
        """Trained numbers whose gradients have gone through full buckets by then."""
        return moment.gradients - moment.gradients % self.bucket if self.bucket else 0


class _Sharded(_Plain):
    """ZeRO 3: weights too are split, and gathered when a layer runs."""

    def always(self) -> MemoryParts:
        """Shares of weights, gradients and optimizer state; the bucket stays."""
        return MemoryParts(
            weights=-(-self.weights.numbers // self.sharing.workers) * self.width + self.weights.buffers,
            gradients=self.width * self.own,
            optimizer=3 * _WIDE * self.own,
            buckets=self.width * self.bucket,
        )

    def in_pass(self, moment: Moment) -> MemoryParts:
        """Gathered weights stay while they are needed again within so many numbers; what is gathered at once
        lies there twice.
        """
        always, in_pass = self.always(), super().in_pass(moment)
        # Towards the end of the forward pass both are there.
        gathered = min(self.weights.numbers, _LIVE_NUMBERS)
        fetching = (
            0 if moment.where in ("backward", "after") else min(self.weights.numbers, _GATHERED_AT_ONCE)
        )
        if self.sharing.workers == 1:
            gathered = fetching = 0
        return replace(
            in_pass,
            weights=always.weights + self.width * (gathered + fetching),
            gradients=always.gradients,
            buckets=always.buckets,
        )

    def reducing(self) -> MemoryParts:
        """The bucket's sum, before gathered weights go."""
        gathered = 0 if self.sharing.workers == 1 else min(self.weights.numbers, _LIVE_NUMBERS)
        always = self.always()
        return replace(
            always,
            weights=always.weights + self.width * gathered,
            transient=self.width * self.bucket,
            moment="while gradients are summed",
        )

    def stepping(self) -> MemoryParts:
        """Gradients in float32, and AdamW's temporaries."""
        always = self.always()
        temporary = self.own if self.sharing.gpu else 2 * self.own
        return replace(
            always,
            gradients=always.gradients + _WIDE * self.own,
            transient=_WIDE * temporary,
            moment="in the optimizer's step",
        )
