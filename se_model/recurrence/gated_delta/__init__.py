"""The gated delta rule: the recurrence, its chunked form, and the layer around them."""

from se_model.recurrence.gated_delta.chunked import delta_rule_chunked
from se_model.recurrence.gated_delta.layer import GatedDeltaSizes, gated_delta_rule
from se_model.recurrence.gated_delta.naive import delta_rule_naive
from se_model.recurrence.gated_delta.operator import GATED_DELTA

__all__ = ["GATED_DELTA", "GatedDeltaSizes", "delta_rule_chunked", "delta_rule_naive", "gated_delta_rule"]
