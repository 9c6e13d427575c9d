"""The Mamba-2 layer of transformers, which five architectures share but for what Falcon-H1 overrides."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

from se_model.attach.mixers.mixer import AttachedMixer
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, mamba2_exchange
from se_model.recurrence import CONVOLUTION, MAMBA2, Carried, Mamba2Sizes, mamba2
from se_model.span.documents import DocumentBounds


class Mamba2Mixer(AttachedMixer):
    """Mamba-2, from the parts that all of these layers name alike."""

    recurrences = (MAMBA2, CONVOLUTION)

    @property
    def sizes(self) -> Mamba2Sizes:
        """The layer's numbers."""
        layer: Any = self
        return Mamba2Sizes(
            heads=layer.num_heads,
            head_size=layer.head_dim,
            groups=layer.n_groups,
            state_size=layer.ssm_state_size,
            kernel=layer.conv_kernel_size,
            chunk_size=layer.chunk_size,
        )

    def exchanged(self, share: Share) -> Exchanged:
        """Inputs of the convolution, and states."""
        return mamba2_exchange(self.sizes, share)

    def mix(self, hidden: Tensor, carried: Carried, documents: DocumentBounds | None) -> Tensor:
        """Projection, convolution and recurrence, gate and norm, projection."""
        layer: Any = self
        sizes = self.sizes
        gate, inputs, dt = self._projected(hidden).split([sizes.inner, sizes.channels, sizes.heads], dim=-1)
        # Steps, sums and what follows up to the output projection: float32 or better, as in the layer itself.
        dtype = torch.promote_types(inputs.dtype, torch.float32)

        def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
            convolved: Tensor = layer.act(layer.conv1d(inputs, before, documents))
            return convolved

        y = mamba2(
            inputs,
            F.softplus(dt.to(dtype) + layer.dt_bias).clamp(*layer.time_step_limit),
            A_log=layer.A_log,
            D=layer.D,
            sizes=sizes,
            convolve=convolve,
            carried=carried,
            documents=documents,
            backend=self.recurrence_backend,
        )
        output: Tensor = layer.out_proj(self._gated(y, gate).to(hidden.dtype))
        return output

    def _projected(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        projected: Tensor = layer.in_proj(hidden)
        return projected

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        layer: Any = self
        gated: Tensor = layer.norm(y, gate)
        return gated


class AttachedBambaMixer(Mamba2Mixer, BambaMixer):
    """Bamba's."""


class AttachedGraniteMoeHybridMambaLayer(Mamba2Mixer, GraniteMoeHybridMambaLayer):
    """Granite 4's."""


class AttachedNemotronHMamba2Mixer(Mamba2Mixer, NemotronHMamba2Mixer):
    """Nemotron-H's."""


class AttachedZamba2MambaMixer(Mamba2Mixer, Zamba2MambaMixer):
    """Zamba2's."""


class AttachedFalconH1Mixer(Mamba2Mixer, FalconH1Mixer):
    """Falcon-H1's, which multiplies before and after its projection, and may have no norm."""

    def _projected(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        projected: Tensor = layer.in_proj(hidden * layer.ssm_in_multiplier) * layer.mup_vector
        return projected

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        return super()._gated(y, gate) if self.mamba_rms_norm else y * F.silu(gate)


LAYERS = (
    AttachedBambaMixer,
    AttachedGraniteMoeHybridMambaLayer,
    AttachedNemotronHMamba2Mixer,
    AttachedZamba2MambaMixer,
    AttachedFalconH1Mixer,
)
