"""Mamba-1's selective scan: the recurrence, its chunked form, and the layer around them."""

from se_model.recurrence.selective_scan.chunked import selective_scan_chunked
from se_model.recurrence.selective_scan.layer import SelectiveScanSizes, selective_scan
from se_model.recurrence.selective_scan.naive import selective_scan_naive
from se_model.recurrence.selective_scan.operator import MAMBA1

__all__ = ["MAMBA1", "SelectiveScanSizes", "selective_scan", "selective_scan_chunked", "selective_scan_naive"]
