"""A model without its weights: parameters on torch's `meta` device, buffers computed as usual."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def skeleton(configuration: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Returns a causal language model whose parameters have shapes and types, and no memory.

    Weights that the configuration ties are tied only by `tie`: until then each has a name of its own.
    Parameters that the architecture keeps in float32 are of that type.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights, no_tie_weights

    import se_model.hybrid  # noqa: F401 - registers Mamba-2-Hybrid with transformers' Auto classes

    # Under `torch.device("meta")` buffers would be empty too, and what a rotary embedding computes once lost.
    with no_init_weights(), no_tie_weights(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(configuration, dtype=dtype)
    _keep_in_float32(model, dtype)
    return model.eval()


def tie(model: PreTrainedModel, missing: set[str]) -> None:
    """Ties what the configuration ties, to the names that a checkpoint has; the others leave `missing`."""
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    patterns = [each.replace("*", ".*") for each in model._get_dtype_plan(dtype)]
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.data = parameter.data.to(torch.float32)
