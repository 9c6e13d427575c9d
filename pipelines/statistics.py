"""How sure a mean is: Student's t for a few seeds, the bootstrap for many prompts; differences by pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL_95 = 1.960
"""Standard errors that half of a 95% interval spans, for a mean of many."""

_RESAMPLES = 10_000
_SEED = 17
# Values with fewer distinct ones than this, such as right and wrong, are drawn as counts.
_FEW = 32
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far from it the true one lies with 95% confidence; None for a single value."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from independent values of a normal distribution, one or more."""
        mean = statistics.fmean(values)
        freedom = len(values) - 1
        if not freedom:
            return cls(mean, None)
        t = _T[freedom - 1] if freedom <= len(_T) else NORMAL_95
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int = 3, *, sign: bool = False) -> str:
        """`mean ± half width`; a single value stands alone."""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Interval:
    """Where the true value lies with 95% confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """A mean of independent values of any distribution.

    Attributes:
        mean: of the values or, where they come in groups, the mean of the groups' means.
        interval: between the 2.5th and the 97.5th percentile of the means of resampled values. Values that
            are all equal give one without width: so few may still differ from those that were not seen.
        probability: two-sided, of a mean this far from zero if the true one is zero; rarer than resampling
            can tell, by the normal distribution. Less than `0.5 ** (n - 1)` is never claimed of n values that
            differ from zero: so often chance gives them all one sign.
    """

    mean: float
    interval: Interval
    probability: float

    @classmethod
    def of(cls, *groups: Sequence[float]) -> Bootstrap:
        """Resamples the values of each group; the same groups always give the same numbers.

        Raises:
            ValueError: there is no group, one is empty, or a value is not finite.
        """
        if not groups or not all(map(len, groups)):
            raise ValueError("a mean needs a value")
        generator = np.random.default_rng(_SEED)
        arrays = [np.asarray(group, dtype=np.float64) for group in groups]
        if not all(np.isfinite(values).all() for values in arrays):
            raise ValueError("a value is not a number")
        means = np.mean([_resampled_means(values, generator) for values in arrays], axis=0)
        low, high = np.percentile(means, [2.5, 97.5])
        below, above = np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)
        beyond_zero = float(2 * (min(below, above) + 1) / (_RESAMPLES + 1))
        if not min(below, above) and (spread := float(means.std())):
            beyond_zero = min(beyond_zero, math.erfc(abs(float(means.mean())) / spread / math.sqrt(2)))
        unequal = sum(int(np.count_nonzero(values)) for values in arrays)
        return cls(
            mean=math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups),
            interval=Interval(float(low), float(high)),
            probability=min(1.0, max(beyond_zero, 0.5 ** (unequal - 1))),
        )


def paired(ones: Mapping[Key, float], others: Mapping[Key, float]) -> list[float]:
    """`ones` less `others` for every key that both have, in the order of `ones`."""
    return [one - others[key] for key, one in ones.items() if key in others]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Corrects the probabilities of several tests (Holm, 1979): at most 5% of such tables err anywhere."""
    ascending = sorted(range(len(probabilities)), key=lambda index: probabilities[index])
    corrected, least = [0.0] * len(probabilities), 0.0
    for place, index in enumerate(ascending):
        least = max(least, min(1.0, probabilities[index] * (len(probabilities) - place)))
        corrected[index] = least
    return corrected


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The means of `_RESAMPLES` samples, drawn with replacement. values: [n] -> [_RESAMPLES]."""
    size = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < _FEW:
        drawn = generator.multinomial(size, counts / size, size=_RESAMPLES)
        return np.asarray(drawn @ distinct / size)
    rows = max(1, _DRAWN_AT_ONCE // size)
    return np.concatenate(
        [
            values[generator.integers(0, size, size=(min(rows, _RESAMPLES - first), size))].mean(axis=1)
            for first in range(0, _RESAMPLES, rows)
        ]
    )
