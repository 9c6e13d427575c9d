"""What is left of a state, from the log of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def decay(log: Tensor, visible: Tensor | None = None) -> Tensor:
    """exp(log) where visible, else zero; a decay below the square root of the smallest number is zero, too.

    Products with such decays are denormal numbers, with which a CPU computes ten times as slowly.
    """
    if visible is not None:
        log = log.masked_fill(~visible, -torch.inf)
    smallest = torch.finfo(log.dtype).smallest_normal
    return F.threshold(log, math.log(smallest) / 2, -torch.inf).exp()
