"""The linear layers that write to the residual stream."""

from __future__ import annotations

from torch import nn


class ResidualProjection(nn.Linear):
    """A linear layer whose output is added to the residual stream.

    A class of its own so that initialisation can tell it from others: it starts smaller the deeper the model.
    """
