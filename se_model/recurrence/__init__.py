"""What layers carry from token to token other than by attention; knows no model.

A kind of recurrence is a folder (``mamba2/``, ``selective_scan/``, ``gated_delta/``): ``naive.py`` is the
recurrence as it is written and the oracle of the faster forms beside it, ``chunked.py`` and ``library.py``;
``operator.py`` takes one of these, by ``backends.py``; ``layer.py`` is what a model's layer calls. Kinds
share ``chunks.py`` and ``segments.py``. ``protocol.py`` is the seam through which every kind gets what came
before its tokens; ``convolution.py`` is the short convolution in front of them; ``mamba_ssm_package.py`` and
its like are where the field's kernels enter; ``decoders.py`` says which layers of any decoder are recurrent,
and what they can be told.
"""

from se_model.recurrence.backends import Recurrence
from se_model.recurrence.convolution import CONVOLUTION, CausalConv1d, causal_convolution
from se_model.recurrence.gated_delta import (
    GATED_DELTA,
    GatedDeltaSizes,
    delta_rule_chunked,
    delta_rule_naive,
    gated_delta_rule,
)
from se_model.recurrence.mamba2 import MAMBA2, Mamba2Sizes, mamba2, ssd_chunked, ssd_naive
from se_model.recurrence.protocol import Carried, HandOver, InitialState
from se_model.recurrence.selective_scan import (
    MAMBA1,
    SelectiveScanSizes,
    selective_scan,
    selective_scan_chunked,
    selective_scan_naive,
)

__all__ = [
    "CONVOLUTION",
    "GATED_DELTA",
    "MAMBA1",
    "MAMBA2",
    "Carried",
    "CausalConv1d",
    "GatedDeltaSizes",
    "HandOver",
    "InitialState",
    "Mamba2Sizes",
    "Recurrence",
    "SelectiveScanSizes",
    "causal_convolution",
    "delta_rule_chunked",
    "delta_rule_naive",
    "gated_delta_rule",
    "mamba2",
    "selective_scan",
    "selective_scan_chunked",
    "selective_scan_naive",
    "ssd_chunked",
    "ssd_naive",
]
