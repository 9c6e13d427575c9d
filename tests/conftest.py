"""What must be settled before anything is imported."""

import os

import torch

if not torch.cuda.is_available():
    # triton reads this when a kernel is defined: without a GPU, kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
