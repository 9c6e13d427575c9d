"""How close two computations of one thing must come: said here alone, and nothing loosens it at run time.

The bound is absolute, relative or both, as the test says; quantities are of order one. It covers what another
order of additions costs in the dtype, no more: a wrong mask, factor or neighbour is off by far more.
"""

import torch

F64 = 1e-10
"""float64 through whole operators and models: attention, scans, several layers, and their gradients."""

F64_SHORT = 1e-12
"""float64 where a value is one short sum (a convolution, a norm), or the same operations run again."""

F64_SAME = 1e-14
"""float64 where the same numbers are added, at most in another order."""

F32 = 1e-5
"""float32 against another float32 computation, or against float64."""

F32_SHORT = 1e-6
"""float32 where a value is a single sum of exact terms (a mean loss), or the same operations run again."""

BF16 = 2e-2
"""bfloat16 against float64: the rounding of inputs and outputs to 8 bits."""

F16 = 2.5e-3
"""float16 against float64: the rounding of inputs and outputs to 11 bits."""

BY_DTYPE = {torch.float64: F64, torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}


def within(tolerance: float) -> dict[str, float]:
    """Arguments of ``torch.testing.assert_close``: ``tolerance`` relative and absolute."""
    return {"rtol": tolerance, "atol": tolerance}


EXACT = within(0)
"""Bit for bit (but for the sign of zero)."""

F32_MODEL_GRADIENTS = {"rtol": 1e-4, "atol": 2e-5}
"""Gradients of whole float32 models, which sum over every token twice in different orders."""
