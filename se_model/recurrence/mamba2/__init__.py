"""Mamba-2: the recurrence, its chunked form, and the layer around them."""

from se_model.recurrence.mamba2.chunked import ssd_chunked
from se_model.recurrence.mamba2.layer import Mamba2Sizes, mamba2
from se_model.recurrence.mamba2.naive import ssd_naive
from se_model.recurrence.mamba2.operator import MAMBA2

__all__ = ["MAMBA2", "Mamba2Sizes", "mamba2", "ssd_chunked", "ssd_naive"]
