"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from pipelines.recipe.keys.section import Section


class Schedule(Section):
    """Linear warm-up, then a cosine or a constant.

    Attributes:
        kind: the curve after the warm-up.
        warmup_steps: steps until the full learning rate is reached; 0 starts with it.
        final_ratio: where the cosine ends, as a fraction of the full learning rate.
    """

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_ratio: float = Field(default=0.1, ge=0.0, le=1.0)

    def factor(self, step: int, steps: int) -> float:
        """Returns the fraction of the full learning rate that update `step` (1 ... `steps`) uses."""
        if not 1 <= step <= steps:
            raise ValueError(f"step must lie in 1 ... {steps}, got {step}")
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        # The first step after the warm-up starts the descent; the last step ends exactly at final_ratio.
        done = (step - self.warmup_steps) / (steps - self.warmup_steps)
        return self.final_ratio + (1.0 - self.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * done))
