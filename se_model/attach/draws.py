"""Which forward call of training a layer runs in: its chunk size and random blocks are drawn for that one.

Calls are counted where the decoder is called. Each takes its number along as an argument, `draw`, down to the
attention function: activation checkpointing, in either form, repeats a layer with the arguments that it had,
whatever other calls were made between its forward and its backward pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from se_model.attach.marks import Attachment


def number_call(decoder: nn.Module, call: dict[str, Any], attachment: Attachment) -> int:
    """The number of a call of `decoder`; counts it if it trains, and writes it into its arguments, `call`.

    A call trains in training mode with gradients. Any other has the draw of the next one that does.

    Raises:
        ValueError: where a backward pass repeats the whole decoder: nothing says which call that was.
    """
    number = attachment.step
    if not (decoder.training and torch.is_grad_enabled()):
        return number
    if in_backward():
        if attachment.config.draws:
            raise ValueError(
                f"{type(decoder).__name__} is run again as a whole in a backward pass, which cannot repeat "
                "the chunk sizes and blocks drawn in its first run; checkpoint its layers instead "
                "(model.gradient_checkpointing_enable()), or give one chunk size"
            )
        return number
    attachment.step += 1
    parameters = inspect.signature(decoder.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        call["draw"] = number
    return number


def step_of(module: nn.Module, attachment: Attachment, draw: int | None) -> int:
    """The number of the forward call in which `module`, an attention layer that was handed `draw`, runs.

    Raises:
        ValueError: where a backward pass repeats a layer that its model hands nothing on to.
    """
    if draw is not None:
        return draw
    if in_backward() and attachment.config.draws:
        raise ValueError(
            f"{type(module).__name__} is not told in which forward call it runs, so activation checkpointing "
            "cannot repeat what was drawn there; give one chunk size, or train without it"
        )
    return attachment.number


def in_backward() -> bool:
    """Whether this is called from a backward pass, as checkpointing calls what it repeats."""
    return torch._C._current_graph_task_id() != -1
