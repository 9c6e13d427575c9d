"""Causal depthwise convolution along a sequence, with a state, and with documents kept apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_model.recurrence.backends import Library, Recurrence, Request
from se_model.recurrence.causal_conv1d_package import convolution_library, has_causal_conv1d
from se_model.recurrence.convolution_naive import convolution_naive
from se_model.span.documents import DocumentBounds, Documents

CONVOLUTION = Recurrence(
    name="the short convolution",
    library=Library(
        package="causal-conv1d",
        installed=has_causal_conv1d,
        limits=(
            ("width", lambda size: 2 <= size <= 4, "windows of 2 to 4 tokens"),
            ("channels", lambda size: size % 8 == 0, "multiples of 8 channels"),
        ),
    ),
    keeps="its inputs and one sum of their size",
)


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Documents | None = None,
) -> Tensor:
    """Each channel's weighted sum of its last W values, the present one included.

    x: [B, L, C]; weight: [C, W], the last column for the present token; bias: [C]; state: [B, W - 1, C], what
    came before x (None: zeros); cu_seqlens: [N + 1] with B = 1: no document sees another, and the state
    belongs to the first. Returns [B, L, C], summed in float32 or better.

    A sum of W shifted products is about three times as fast as `torch.nn.functional.conv1d` on the CPU, which
    wants the sequence last and has a slow depthwise backward.

    Raises:
        ValueError: if the state's shape or ``cu_seqlens`` does not fit.
    """
    batch, length, channels = x.shape
    context = weight.shape[1] - 1
    dtype = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        padded = F.pad(x.to(dtype), (0, 0, context, 0))
    elif state.shape == (batch, context, channels):
        padded = torch.cat([state.to(dtype), x.to(dtype)], dim=1)
    else:
        expected = [batch, context, channels]
        raise ValueError(f"the state must be [B, W - 1, C] = {expected}; got {list(state.shape)}")

    taps = weight.to(dtype).t().contiguous()
    y = x * taps[context]
    if bias is not None:
        y = y + bias
    visible = None
    if cu_seqlens is not None:
        visible = _visible_context(DocumentBounds.of(cu_seqlens, length, batch), context, x.device)
    for back in range(1, context + 1):
        earlier = padded[:, context - back : context - back + length]
        if visible is not None:
            earlier = earlier * (visible >= back).to(dtype)[:, None]
        y = y + earlier * taps[context - back]
    return y.to(x.dtype)


def _visible_context(documents: DocumentBounds, context: int, device: torch.device) -> Tensor:
    """How many earlier tokens each token may look at: [L]. The first document also sees the state."""
    positions = documents.position_ids(device)[0]
    in_first = torch.arange(documents.length, device=device) < documents.bounds[1]
    return torch.where(in_first, positions + context, positions)


class CausalConv1d(nn.Conv1d):
    """`causal_convolution` as a module whose parameters are those of a depthwise `torch.nn.Conv1d`.

    The weight is read inside the module's own forward, so that whatever stands in for the module (a PEFT
    wrapper's trained copy, ZeRO-3's gathered shard) is what computes.

    Attributes:
        recurrence_backend: "auto", "library", "chunked" (`causal_convolution`) or "naive".
    """

    recurrence_backend = "auto"

    @property
    def width(self) -> int:
        """W, tokens that are seen, the present one included."""
        return self.kernel_size[0]

    @property
    def channels(self) -> int:
        """C."""
        return self.in_channels

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, padding=kernel_size - 1, bias=bias)

    def forward(self, x: Tensor, state: Tensor | None = None, cu_seqlens: Documents | None = None) -> Tensor:
        """x: [B, L, C]; state: [B, W - 1, C]; cu_seqlens: [N + 1] with B = 1. Returns [B, L, C]."""
        weight = self.weight.squeeze(1)
        sizes = (("width", self.width), ("channels", self.channels))
        name = CONVOLUTION.resolve(self.recurrence_backend, Request(x.device.type, x.dtype, sizes=sizes))
        if name == "chunked":
            return causal_convolution(x, weight, self.bias, state=state, cu_seqlens=cu_seqlens)
        documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, x.shape[1], x.shape[0])
        compute = convolution_library if name == "library" else convolution_naive
        return compute(x, weight, self.bias, state=state, cu_seqlens=documents)
