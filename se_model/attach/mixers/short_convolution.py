"""LFM2's layers, whose recurrence is a short convolution alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeShortConv

from se_model.attach.mixers.mixer import AttachedMixer
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, convolution_exchange
from se_model.recurrence import CONVOLUTION, Carried
from se_model.span.documents import DocumentBounds


class ShortConvolutionMixer(AttachedMixer):
    """out(c * conv(b * x)), with b, c and x from one projection."""

    recurrences = (CONVOLUTION,)

    def exchanged(self, share: Share) -> Exchanged:
        """Inputs of the convolution."""
        layer: Any = self
        return convolution_exchange(share, channels=layer.conv.in_channels, kernel=layer.conv_kernel_size)

    def mix(self, hidden: Tensor, carried: Carried, documents: DocumentBounds | None) -> Tensor:
        """Projection, convolution between two gates, projection."""
        layer: Any = self
        b, c, x = layer.in_proj(hidden).chunk(3, dim=-1)
        inputs = b * x
        before = carried.convolution_state(inputs, layer.conv_kernel_size - 1)
        output: Tensor = layer.out_proj(c * layer.conv(inputs, before, documents))
        return output


class AttachedLfm2ShortConv(ShortConvolutionMixer, Lfm2ShortConv):
    """LFM2's."""


class AttachedLfm2MoeShortConv(ShortConvolutionMixer, Lfm2MoeShortConv):
    """That of LFM2 with experts."""


LAYERS = (
    AttachedLfm2ShortConv,
    AttachedLfm2MoeShortConv,
)
