"""Means over seeds with 95% confidence intervals, and differences between variants seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_T_OF_MANY = 1.960


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
        t = _T[freedom - 1] if freedom <= len(_T) else _T_OF_MANY
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int = 3, *, sign: bool = False) -> str:
        """`mean ± half width`; a single value stands alone."""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


def paired_difference(ones: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """The mean of `ones` less `others` over the seeds that both have; None where they share none."""
    shared = sorted(ones.keys() & others.keys())
    return Estimate.of([ones[seed] - others[seed] for seed in shared]) if shared else None
